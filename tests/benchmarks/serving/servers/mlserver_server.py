"""MLServer: a custom runtime with adaptive batching and one parallel worker (mlserver.readthedocs.io, "adaptive batching", "custom runtimes")."""

import json
import os
import sys
import tempfile
from pathlib import Path

import common
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    async def load(self) -> bool:
        self.model = common.load_model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        batch = NumpyCodec.decode_input(payload.inputs[0]).astype(common.DTYPE, copy=False)
        outputs = [NumpyCodec.encode_output("output", self.model(batch))]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    settings = {
        "host": "127.0.0.1",
        "http_port": common.PORT,
        "grpc_port": common.PORT + 1,
        "metrics_port": common.PORT + 2,
        "parallel_workers": 1,
        "debug": False,
    }
    model = {"name": common.MODEL, "implementation": "mlserver_server.Runtime", "max_batch_size": common.MAX_BATCH, "max_batch_time": common.MAX_WAIT_S}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    os.execv(str(Path(sys.executable).with_name("mlserver")), ["mlserver", "start", str(folder)])
