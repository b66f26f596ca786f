"""Triton Inference Server: a model repository's config.pbtxt, with the batching that was planned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SpecError
from ..records import ServingSpec, to_json
from ..units import format_seconds
from ._workload import is_gpu
from .base import EXPORTERS, Exporter, provenance
from .json import SPEC_FILE

BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Of the formats whose file a backend of Triton reads as it is; those of torch would need its Python backend, and a program for it."""
MODEL_FILE = "model.onnx"
TYPES = {"BYTES": "TYPE_STRING"}
"""Where Triton's word is another than ``TYPE_`` and the protocol's."""


def backend_of(format: str) -> str | None:
    """The backend that reads a model's file of this format; None where there is none."""
    return BACKENDS.get(format)


@EXPORTERS.register("triton")
@dataclass(frozen=True, kw_only=True)
class Triton(Exporter):
    """The repository without the model: put ``model.onnx`` into the folder ``1``, or take the bundle's ``model`` folder, which is a whole one.

    Inputs and outputs are left to Triton, which reads them from the file.
    """

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """The model's configuration, and the spec."""
        accelerator = spec.accelerators.value > 0
        if accelerator and not is_gpu(spec):
            raise SpecError(f"Triton runs models on processors and GPUs, and {spec.device} is neither", help="write it for kubernetes or json")
        text = _config(
            name=spec.name,
            backend=BACKENDS["onnx"],
            max_batch_size=int(spec.max_batch_size.value),
            max_wait_s=spec.max_wait.value,
            instances=1,
            threads=None if accelerator else max(1, int(spec.cpu_cores.value)),
            kind="KIND_GPU" if accelerator else "KIND_CPU",
            comments={
                "max_batch_size": provenance(spec.max_batch_size),
                "wait": f"{format_seconds(spec.max_wait.value)}; {provenance(spec.max_wait)}",
                "instances": "one a replica; replicas are the orchestrator's",
            },
        )
        head = (
            f"# aimass.dev/spec-digest: {spec.digest}\n"
            f"# put the model into {spec.name}/1/{MODEL_FILE}; the folder 'model' of a bundle is this repository with its model in it\n"
        )
        return {f"{spec.name}/config.pbtxt": head + text, SPEC_FILE: to_json(spec) + "\n"}


def model_config(serving: Mapping[str, Any]) -> dict[str, str]:
    """``NAME/config.pbtxt`` beside a bundle's model, from its `serving.json`; nothing where no backend of Triton reads its format."""
    backend = backend_of(serving["format"])
    if backend is None:
        return {}
    batched = serving["batched"]
    text = _config(
        name=serving["name"],
        backend=backend,
        max_batch_size=serving["max_batch_size"] if batched else 0,
        max_wait_s=serving["max_wait_s"],
        instances=serving["workers"],
        threads=serving["threads_per_worker"],
        kind="KIND_CPU",
        inputs=[_tensor(tensor, batched=batched) for tensor in serving["inputs"]],
        outputs=[_tensor(tensor, batched=batched) for tensor in serving["outputs"]],
        versions=[int(serving["version"])],
    )
    return {f"{serving['name']}/config.pbtxt": text}


def _config(
    *, name: str, backend: str, max_batch_size: int, max_wait_s: float, instances: int, threads: int | None, kind: str,
    inputs: Sequence[str] = (), outputs: Sequence[str] = (), versions: Sequence[int] = (), comments: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """A `ModelConfig` in protobuf's text form, as docs/user_guide/model_configuration.md of Triton describes it."""
    said = {key: f"  # {' '.join(text.split())}" for key, text in (comments or {}).items()}
    lines = [
        f"name: {json.dumps(name)}",
        f"backend: {json.dumps(backend)}",
        f"default_model_filename: {json.dumps(MODEL_FILE)}",
        f"max_batch_size: {max_batch_size}{said.get('max_batch_size', '')}",
    ]
    lines += ["\n".join([f"{side} [", ",\n".join(tensors), "]"]) for side, tensors in (("input", inputs), ("output", outputs)) if tensors]
    if max_batch_size > 1:
        lines.append(f"dynamic_batching {{\n  max_queue_delay_microseconds: {round(max_wait_s * 1e6)}{said.get('wait', '')}\n}}")
    lines.append(f"instance_group [\n  {{\n    count: {instances}{said.get('instances', '')}\n    kind: {kind}\n  }}\n]")
    if versions:
        lines.append(f"version_policy {{\n  specific {{\n    versions: {json.dumps(list(versions))}\n  }}\n}}")
    if threads is not None:
        lines += [_parameter(key, str(threads)) for key in THREADS[backend]]
    return "\n".join(lines) + "\n"


THREADS = {"onnxruntime": ("intra_op_thread_count",), "openvino": ("INFERENCE_NUM_THREADS",)}
"""Parameters of the backends."""


def _parameter(key: str, value: str) -> str:
    return f"parameters {{\n  key: {json.dumps(key)}\n  value {{\n    string_value: {json.dumps(value)}\n  }}\n}}"


def _tensor(tensor: Mapping[str, Any], *, batched: bool) -> str:
    dims = list(tensor["shape"])[1 if batched else 0 :]
    shape = f"    dims: {json.dumps(dims)}" if dims else "    dims: [ 1 ]\n    reshape { shape: [ ] }"
    data_type = TYPES.get(tensor["datatype"], f"TYPE_{tensor['datatype']}")
    return f"  {{\n    name: {json.dumps(tensor['name'])}\n    data_type: {data_type}\n{shape}\n  }}"
