"""What the servers that we are compared with share: settings from the environment, the model, and their JSON and binary forms."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MODEL = os.environ["SERVE_MODEL"]
FOLDER = Path(os.environ["SERVE_FOLDER"])
PORT = int(os.environ["SERVE_PORT"])
TUNED = os.environ["SERVE_TUNED"] == "1"
"""With ONNX Runtime for torch and orjson for json: what a user can do by hand, whatever the server."""
DTYPE = np.dtype(np.int64 if MODEL == "encoder" else np.float32)
MAX_BATCH, MAX_WAIT_S = int(os.environ["SERVE_MAX_BATCH"]), float(os.environ["SERVE_MAX_WAIT_S"])

if TUNED:
    import orjson

    loads: Callable[[bytes], Any] = orjson.loads

    def dumps(document: Any) -> bytes:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
else:
    loads = json.loads

    def dumps(document: Any) -> bytes:
        return json.dumps(document).encode()


def load_model() -> Callable[[np.ndarray], np.ndarray]:
    """A function from a batch to its outputs, on one thread."""
    if TUNED:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = FOLDER / "bundle" / "model" / MODEL / "1" / "model.onnx"
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda batch: session.run(None, {"x": batch})[0]
    import torch
    import zoo

    torch.set_num_threads(1)
    model = zoo.load(zoo.ZOO[MODEL], FOLDER)

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(batch)).numpy()

    return run


def from_document(document: Any) -> np.ndarray:
    """The batch in a decoded request of the Open Inference Protocol."""
    (entry,) = document["inputs"]
    return np.array(entry["data"], DTYPE).reshape(entry["shape"])


def to_document(outputs: np.ndarray) -> dict[str, Any]:
    """The answer, to be encoded."""
    data = outputs.ravel() if TUNED else outputs.ravel().tolist()
    return {"model_name": MODEL, "outputs": [{"name": "output", "shape": list(outputs.shape), "datatype": "FP32", "data": data}]}


def from_bytes(body: bytes) -> np.ndarray:
    """One sample, as its bytes."""
    return np.frombuffer(body, DTYPE).reshape(1, -1)
