"""KServe's SDK: a custom predictor; it has no batching of its own (kserve.github.io, "custom predictor")."""

import common
import kserve
from kserve import InferOutput, InferRequest, InferResponse
from kserve.utils.utils import generate_uuid


class Predictor(kserve.Model):
    def __init__(self) -> None:
        super().__init__(common.MODEL)
        self.load()

    def load(self) -> bool:
        self.model = common.load_model()
        self.ready = True
        return True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        batch = payload.inputs[0].as_numpy()
        outputs = self.model(batch.astype(common.DTYPE, copy=False))
        output = InferOutput(name="output", shape=list(outputs.shape), datatype="FP32")
        binary = payload.use_binary_outputs
        output.set_data_from_numpy(outputs, binary_data=binary)
        answer = {"response_id": payload.id or generate_uuid(), "model_name": self.name, "infer_outputs": [output]}
        return InferResponse(**answer, use_binary_outputs=binary)


if __name__ == "__main__":
    kserve.ModelServer(http_port=common.PORT, enable_grpc=False, workers=1, access_log_format=None).start([Predictor()])
