"""TensorFlow Serving: its model list, versions and batching, for a model that is there as a SavedModel; none is written here, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..records import ServingSpec, to_json
from ..units import format_seconds
from .base import EXPORTERS, Exporter, provenance
from .json import SPEC_FILE

WHY_NO_MODEL = (
    "no SavedModel is written: PyTorch has no exporter to it, and those of others go through ONNX or XLA with packages that stand still (onnx-tf), "
    "pin another torch (torch-xla), write another format (litert-torch) or turn the layout of the model and bring all of TensorFlow along (onnx2tf)"
)
BASE_PATH = "/models"


@EXPORTERS.register("tensorflow_serving")
@dataclass(frozen=True, kw_only=True)
class TensorFlowServing(Exporter):
    """``tensorflow_model_server --model_config_file=models.config --enable_batching --batching_parameters_file=batching.config``."""

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """The list of models, the batching, and the spec."""
        head = f"# aimass.dev/spec-digest: {spec.digest}\n# {WHY_NO_MODEL}\n# put your own one into {BASE_PATH}/{spec.name}/1\n"
        models = f"""model_config_list {{
  config {{
    name: {json.dumps(spec.name)}
    base_path: {json.dumps(f"{BASE_PATH}/{spec.name}")}
    model_platform: "tensorflow"
    model_version_policy {{
      latest {{
        num_versions: 1
      }}
    }}
  }}
}}
"""
        cores = max(1, int(spec.cpu_cores.value))
        batching = f"""max_batch_size {{ value: {int(spec.max_batch_size.value)} }}  # {_line(provenance(spec.max_batch_size))}
batch_timeout_micros {{ value: {round(spec.max_wait.value * 1e6)} }}  # {format_seconds(spec.max_wait.value)}; {_line(provenance(spec.max_wait))}
num_batch_threads {{ value: {cores} }}  # {_line(provenance(spec.cpu_cores))}
"""
        return {"models.config": head + models, "batching.config": f"# aimass.dev/spec-digest: {spec.digest}\n" + batching, SPEC_FILE: to_json(spec) + "\n"}


def _line(text: str) -> str:
    return " ".join(text.split())
