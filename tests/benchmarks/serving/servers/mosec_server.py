"""mosec: batching by `max_batch_size` and `max_wait_time`, one worker (mosecorg.github.io, "dynamic batching")."""

import common
import numpy as np
from mosec import Server, Worker


class Inference(Worker):
    def __init__(self):
        self.model = common.load_model()

    def deserialize(self, data):
        """JSON, or the bytes of one sample: workers see no headers."""
        return (common.from_document(common.loads(data)), False) if data[:9] == b'{"inputs"' else (common.from_bytes(data), True)

    def forward(self, data):
        outputs = self.model(np.concatenate([rows for rows, _ in data]))
        return [(output, binary) for output, (_, binary) in zip(outputs, data, strict=True)]

    def serialize(self, data):
        output, binary = data
        return output.tobytes() if binary else common.dumps(common.to_document(output[None]))


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=common.MAX_BATCH, max_wait_time=max(1, round(1000 * common.MAX_WAIT_S)), route="/infer")
    server.run()
