"""Ray Serve: `serve.batch` in one replica, its proxy or HAProxy before it (docs.ray.io, "dynamic request batching", "performance tuning")."""

import time

import common
import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Inference:
    def __init__(self) -> None:
        self.model = common.load_model()

    @serve.batch(max_batch_size=common.MAX_BATCH, batch_wait_timeout_s=common.MAX_WAIT_S)
    async def run(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.model(np.concatenate(rows)))

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        if request.headers["content-type"] == "application/octet-stream":
            return Response((await self.run(common.from_bytes(body))).tobytes(), media_type="application/octet-stream")
        output = await self.run(common.from_document(common.loads(body)))
        return Response(common.dumps(common.to_document(output[None])), media_type="application/json")


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": common.PORT})
    serve.run(Inference.bind(), route_prefix="/infer")
    while True:
        time.sleep(3600)
