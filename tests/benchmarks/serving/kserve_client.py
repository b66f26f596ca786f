"""KServe's own client against a server: run with an interpreter that has `kserve`, which drags in too much for the tests' environment.

``VENV/bin/python tests/benchmarks/serving/kserve_client.py http://HOST:PORT HOST:GRPC_PORT`` wants the model ``net`` of tests/serving/servers.py there
(``y = x @ weight``), and prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig


async def main(url: str, grpc_address: str) -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    expected = x @ np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    seen: dict[str, Any] = {"kserve": importlib.metadata.version("kserve")}
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    seen["rest_live"], seen["rest_ready"] = await rest.is_server_live(url), await rest.is_server_ready(url)
    seen["rest_model_ready"] = await rest.is_model_ready(url, "net")
    over_grpc = InferenceGRPCClient(grpc_address)
    seen["grpc_live"], seen["grpc_ready"] = await over_grpc.is_server_live(), await over_grpc.is_server_ready()
    seen["grpc_model_ready"] = await over_grpc.is_model_ready("net")
    for binary in (False, True):
        tensor = InferInput("x", [3, 4], "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        answer = await rest.infer(url, InferRequest(model_name="net", infer_inputs=[tensor]), model_name="net")
        seen["rest_infer_binary" if binary else "rest_infer_json"] = close(answer, expected)
        tensor = InferInput("x", [3, 4], "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        answer = await over_grpc.infer(InferRequest(model_name="net", infer_inputs=[tensor]))
        seen["grpc_infer_raw" if binary else "grpc_infer_typed"] = close(answer, expected)
    await over_grpc.close()
    return seen


def close(answer: Any, expected: Any) -> bool:
    return bool(np.allclose(answer.outputs[0].as_numpy(), expected, rtol=1e-4, atol=1e-5))


if __name__ == "__main__":
    found = asyncio.run(main(*sys.argv[1:3]))
    print(json.dumps(found))
    sys.exit(0 if all(value is not False for value in found.values()) else 1)
