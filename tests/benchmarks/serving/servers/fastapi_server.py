"""FastAPI on uvicorn, as one writes it by hand: no batching (fastapi.tiangolo.com)."""

from typing import Literal

import common
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

app = FastAPI()
model = common.load_model()
Element = int if common.DTYPE.kind == "i" else float


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: Literal["FP32", "INT64"]
    data: list[Element]


class Body(BaseModel):
    inputs: list[Tensor]


if common.TUNED:

    @app.post("/infer")
    async def infer(request: Request) -> Response:
        outputs = model(common.from_document(common.loads(await request.body())))
        return Response(common.dumps(common.to_document(outputs)), media_type="application/json")
else:

    @app.post("/infer")
    async def infer(body: Body) -> dict:
        return common.to_document(model(common.from_document(body.model_dump())))


@app.post("/binary")
async def binary(request: Request) -> Response:
    return Response(model(common.from_bytes(await request.body())).tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=common.PORT, log_level="warning", access_log=False)
