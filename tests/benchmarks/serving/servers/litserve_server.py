"""LitServe: batching by `max_batch_size` and `batch_timeout`, one worker (lightning.ai/docs/litserve, "batching")."""

import common
import litserve
import numpy as np


class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = common.load_model()

    def decode_request(self, request):
        return common.from_document(request)

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, batch):
        return self.model(batch)

    def unbatch(self, outputs):
        return list(outputs)

    def encode_response(self, output):
        return common.to_document(np.atleast_2d(output)) if not common.TUNED else _plain(output)


def _plain(output):
    """FastAPI encodes the answer, and knows no arrays."""
    document = common.to_document(np.atleast_2d(output))
    document["outputs"][0]["data"] = document["outputs"][0]["data"].tolist()
    return document


if __name__ == "__main__":
    api = Api(max_batch_size=common.MAX_BATCH, batch_timeout=common.MAX_WAIT_S, api_path="/infer")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=common.PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
