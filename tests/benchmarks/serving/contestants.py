"""Who is compared: how each server is started, where it answers, and what a request to it looks like."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zoo

HERE = Path(__file__).parent
TOKEN = "benchmark-token-of-32-characters"  # shown by the clients of ours, whose authentication is on
OURS = "ours"


@dataclass(frozen=True, kw_only=True)
class Wire:
    """One form of request."""

    path: str
    """With ``{model}`` for the model's name."""
    encode: Callable[[zoo.Entry, np.ndarray], tuple[dict[str, str], bytes]]
    """Headers and body for one sample."""
    decode: Callable[[zoo.Entry, Mapping[str, str], bytes], np.ndarray]
    """The answer's numbers, in one row."""


# --- forms of requests ---------------------------------------------------------------------------


def _oip(entry: zoo.Entry, row: np.ndarray) -> tuple[dict[str, str], bytes]:
    data = [round(float(value), 4) for value in row] if entry.datatype == "FP32" else row.tolist()
    tensor = {"name": "x", "shape": [1, len(row)], "datatype": entry.datatype, "data": data}
    return {"Content-Type": "application/json"}, json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def _from_oip(entry: zoo.Entry, headers: Mapping[str, str], body: bytes) -> np.ndarray:
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32).ravel()


def _oip_binary(entry: zoo.Entry, row: np.ndarray) -> tuple[dict[str, str], bytes]:
    data = row.tobytes()
    tensor = {"name": "x", "shape": [1, len(row)], "datatype": entry.datatype, "parameters": {"binary_data_size": len(data)}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    return {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}, header + data


def _from_oip_binary(entry: zoo.Entry, headers: Mapping[str, str], body: bytes) -> np.ndarray:
    return np.frombuffer(body[int(headers["inference-header-content-length"]) :], np.float32)


def _raw(entry: zoo.Entry, row: np.ndarray) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/octet-stream"}, row.tobytes()


def _from_raw(entry: zoo.Entry, headers: Mapping[str, str], body: bytes) -> np.ndarray:
    return np.frombuffer(body, np.float32)


def _bento(entry: zoo.Entry, row: np.ndarray) -> tuple[dict[str, str], bytes]:
    data = [round(float(value), 4) for value in row] if entry.datatype == "FP32" else row.tolist()
    return {"Content-Type": "application/json"}, json.dumps({"x": [data]}, separators=(",", ":")).encode()


def _from_bento(entry: zoo.Entry, headers: Mapping[str, str], body: bytes) -> np.ndarray:
    return np.array(json.loads(body), np.float32).ravel()


OIP_PATH = "/v2/models/{model}/infer"
OIP = {"json": Wire(path=OIP_PATH, encode=_oip, decode=_from_oip), "binary": Wire(path=OIP_PATH, encode=_oip_binary, decode=_from_oip_binary)}
PLAIN = {"json": Wire(path="/infer", encode=_oip, decode=_from_oip)}
RAW = {"binary": Wire(path="/infer", encode=_raw, decode=_from_raw)}


# --- servers -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One server in one configuration."""

    name: str
    environment: str | None
    """Folder of its Python below that of the peers; None: this one."""
    wires: Mapping[str, Wire]
    tuned: bool = False
    """With ONNX Runtime and orjson, as a user can do by hand."""
    batches: bool = True
    variables: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = tuple(zoo.ZOO)
    may_stop: bool = True
    """Whether it bears being stopped while others are measured."""
    arguments: tuple[str, ...] = ()
    """Of our own server."""

    def python(self, peers: Path) -> Path:
        """Its interpreter."""
        return Path(sys.executable) if self.environment is None else peers / self.environment / "bin" / "python"

    def missing(self, peers: Path) -> str | None:
        """Why it cannot be started here."""
        if not self.python(peers).exists():
            return "its environment is not installed"
        if "RAY_SERVE_ENABLE_HA_PROXY" in self.variables and shutil.which("haproxy") is None:
            return "there is no program haproxy"
        return None

    def command(self, peers: Path, folder: Path, port: int) -> list[str]:
        """What starts it."""
        python = str(self.python(peers))
        if self.environment is None:
            return [python, str(folder / zoo.BUNDLE / "run.py"), "serve", "--port", str(port), "--grpc-port", "0", *self.arguments]
        if self.environment == "bentoml":
            return [
                python,
                "-m",
                "bentoml",
                "serve",
                "bentoml_server:Service",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--working-dir",
                str(HERE / "servers"),
            ]
        script = [str(HERE / "servers" / f"{self.environment}_server.py")]
        return [python, *script, *(["--address", "127.0.0.1", "--port", str(port), "--timeout", "60000"] if self.environment == "mosec" else [])]

    def settings(self, model: str, folder: Path, port: int) -> dict[str, str]:
        """Environment variables for it."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        paths = {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE / "servers")])} if self.environment else {}
        ours = {} if self.environment else {"AIMASS_TOKEN": TOKEN}
        return {
            "SERVE_MODEL": model, "SERVE_FOLDER": str(folder), "SERVE_PORT": str(port), "SERVE_TUNED": str(int(self.tuned)),
            "SERVE_MAX_BATCH": str(zoo.MAX_BATCH), "SERVE_MAX_WAIT_S": str(zoo.MAX_WAIT_S), "PYTHONWARNINGS": "ignore",
            **threads, **paths, **ours, **self.variables,
        }  # fmt: skip

    def headers(self) -> dict[str, str]:
        """What every request to it carries."""
        return {} if self.environment else {"Authorization": f"Bearer {TOKEN}"}


WITH_MODEL = ("mlp", "encoder")
"""Where ONNX Runtime computes something."""
QUIET_BENTO = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1"}
QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
CONTESTANTS = (
    Contestant(name=OURS, environment=None, wires=OIP),
    Contestant(name="LitServe", environment="litserve", wires=PLAIN),
    Contestant(name="LitServe, ORT", environment="litserve", wires=PLAIN, tuned=True, models=WITH_MODEL),
    Contestant(name="BentoML", environment="bentoml", wires={"json": Wire(path="/infer", encode=_bento, decode=_from_bento)}, variables=QUIET_BENTO),
    Contestant(name="mosec", environment="mosec", wires=PLAIN),
    Contestant(name="mosec, ORT", environment="mosec", wires=PLAIN | RAW, tuned=True),
    Contestant(name="Ray Serve", environment="ray", wires=PLAIN, variables={"RAY_USAGE_STATS_ENABLED": "0"}, may_stop=False),
    Contestant(name="Ray Serve, HAProxy", environment="ray", wires=PLAIN, variables=QUIET_RAY | {"RAY_SERVE_ENABLE_HA_PROXY": "1"}, may_stop=False),
    Contestant(name="MLServer", environment="mlserver", wires={"json": OIP["json"]}),
    Contestant(name="KServe SDK", environment="kserve", wires=OIP, batches=False),
    Contestant(name="FastAPI", environment="fastapi", wires=PLAIN, batches=False),
    Contestant(
        name="FastAPI, ORT", environment="fastapi", wires=PLAIN | {"binary": Wire(path="/binary", encode=_raw, decode=_from_raw)}, tuned=True, batches=False,
    ),
)  # fmt: skip


def free_port() -> int:
    """A port that is free, and the two after it."""
    for _ in range(100):
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if all(_is_free(port + more) for more in (1, 2)):
                return port
    raise RuntimeError("no three free ports in a row")


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
        return True


def close_enough(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether an answer is the model's: float32 sums differ in their order, and JSON's inputs in their fifth digit."""
    return got.shape == expected.shape and bool(np.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())))


def reference(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Samples and the model's outputs for them."""
    with np.load(folder / zoo.SAMPLES) as stored:
        return stored["inputs"], stored["outputs"]
