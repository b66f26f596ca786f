"""BentoML: a batchable API, which adapts batches to what it sees, one worker (docs.bentoml.com, "adaptive batching")."""

from typing import Annotated

import bentoml
import common
import numpy as np
from bentoml.validators import DType


@bentoml.service(workers=1, threads=1, traffic={"timeout": 60, "max_concurrency": None}, logging={"access": {"enabled": False}})
class Service:
    def __init__(self) -> None:
        self.model = common.load_model()

    @bentoml.api(batchable=True, max_batch_size=common.MAX_BATCH, route="/infer")
    def infer(self, x: Annotated[np.ndarray, DType(common.DTYPE.name)]) -> np.ndarray:
        return self.model(x)
