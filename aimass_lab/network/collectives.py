"""Bytes that each device puts on its link in one step of distributed training or inference, strategy by strategy, as formulas.

Throughout, `ranks` devices take part, a figure is what *one* of them sends (it receives as much unless said
otherwise), and collectives run on a ring, which sends the fewest bytes: an all-reduce of S bytes takes
2(n-1)/n S, an all-gather or reduce-scatter to or from S bytes (n-1)/n S (Patarasuk & Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations", JPDC 69(2)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "broadcast", "send"]

DDP_FIRST_BUCKET, DDP_BUCKET = 2**20, 25 * 2**20
"""Bytes after which DistributedDataParallel closes its first bucket, and the others (``bucket_cap_mb=25``)."""


@dataclass(frozen=True)
class Flow:
    """Collectives of one kind in one step, seen from one rank."""

    name: str
    kind: Kind
    sizes: tuple[float, ...]
    """Bytes of each call: of the whole tensor that is reduced, gathered, scattered or sent."""
    ranks: int
    formula: str

    @property
    def sent_bytes(self) -> float:
        """What one rank sends; of a broadcast in a ring, each rank but the last passes all of it on."""
        factor = {"all-reduce": 2 * (self.ranks - 1) / self.ranks, "send": 1.0, "broadcast": 1.0}.get(self.kind, (self.ranks - 1) / self.ranks)
        return sum(self.sizes) * (factor if self.ranks > 1 else 0)

    @property
    def calls(self) -> int:
        """How often a step waits for such a collective."""
        return len(self.sizes) if self.ranks > 1 else 0


def ddp_buckets(gradient_bytes: Sequence[int], *, first: int = DDP_FIRST_BUCKET, cap: int = DDP_BUCKET) -> tuple[int, ...]:
    """Bytes of the buckets that DistributedDataParallel reduces (Li et al. 2020, "PyTorch Distributed", VLDB 13(12)).

    Gradients become ready last layer first; a bucket closes once it holds its cap, so it may hold more.

    Args:
        gradient_bytes: Of each parameter, in the model's order.
        first: Cap of the first bucket, small so that communication starts early.
        cap: Of the others.
    """
    buckets, size, limit = [], 0, first
    for gradient in reversed(gradient_bytes):
        size += gradient
        if size >= limit:
            buckets.append(size)
            size, limit = 0, cap
    return (*buckets, size) if size else tuple(buckets)


def data_parallel(gradient_bytes: Sequence[int], ranks: int, *, element_bytes: tuple[int, int] = (4, 4), buffer_bytes: int = 0) -> list[Flow]:
    """DistributedDataParallel: every gradient once through an all-reduce, 2(n-1)/n G (Li et al. 2020, as `ddp_buckets`).

    Args:
        gradient_bytes: Of each parameter, in the model's order.
        ranks: Replicas.
        element_bytes: Of a gradient's element, and of what travels: the fp16 and bf16 hooks of torch send 2 for 4.
        buffer_bytes: Buffers, which rank 0 broadcasts before each forward pass.
    """
    own, travels = element_bytes
    sizes = tuple(size * travels / own for size in ddp_buckets(gradient_bytes))
    flows = [Flow("gradients", "all-reduce", sizes, ranks, "2(n-1)/n × gradient bytes, in buckets of 25 MiB, the first of 1 MiB")]
    if buffer_bytes:
        flows.append(Flow("buffers", "broadcast", (float(buffer_bytes),), ranks, "buffer bytes from rank 0 before each forward pass"))
    return flows


def zero(parameter_bytes: int, gradient_bytes: int, ranks: int) -> list[Flow]:
    """ZeRO stages 1 and 2: gradients scattered, new parameters gathered: (n-1)/n (G + P) (Rajbhandari et al. 2020, "ZeRO", SC20, §7.2.1)."""
    return [
        Flow("gradients", "reduce-scatter", (float(gradient_bytes),), ranks, "(n-1)/n × gradient bytes"),
        Flow("updated parameters", "all-gather", (float(parameter_bytes),), ranks, "(n-1)/n × parameter bytes"),
    ]


def padded_elements(shape: Sequence[int], ranks: int) -> int:
    """Elements of a parameter once its first axis is filled up to a multiple of `ranks`, as FSDP2 splits it; a scalar has one row."""
    rows, rest = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    return math.ceil(rows / ranks) * ranks * rest


def fully_sharded(
    groups: Sequence[Sequence[tuple[int, ...]]], ranks: int, *, parameter_itemsize: int = 4, gradient_itemsize: int = 4, reshard: bool = True
) -> list[Flow]:
    """ZeRO stage 3, FSDP2: parameters gathered for each pass, gradients scattered: 3(n-1)/n P, or 2(n-1)/n P (Rajbhandari et al. 2020, §7.2.2).

    Exact for ``torch.distributed.fsdp.fully_shard``, whose padding is in `padded_elements`.

    Args:
        groups: Shapes of the parameters of each wrapped module.
        ranks: Over which parameters are split.
        parameter_itemsize: Bytes of a gathered element (``MixedPrecisionPolicy.param_dtype``).
        gradient_itemsize: Bytes of a reduced element (``reduce_dtype``).
        reshard: Freed after the forward pass and gathered again for the backward (``reshard_after_forward``).
    """
    elements = [sum(padded_elements(shape, ranks) for shape in group) for group in groups]
    gathered = tuple(float(count * parameter_itemsize) for count in elements)
    flows = [Flow("parameters, forward", "all-gather", gathered, ranks, "(n-1)/n × padded parameter bytes")]
    if reshard:
        flows.append(Flow("parameters, backward", "all-gather", gathered, ranks, "(n-1)/n × padded parameter bytes"))
    reduced = tuple(float(count * gradient_itemsize) for count in elements)
    return [*flows, Flow("gradients", "reduce-scatter", reduced, ranks, "(n-1)/n × padded gradient bytes")]


def tensor_parallel(layer_bytes: Sequence[float], ranks: int, *, backward: bool = True, sequence: bool = False) -> list[Flow]:
    """Megatron: two all-reduces of B·S·h a layer forward, two backward (Shoeybi et al. 2019, arXiv 1909.08053, §3, fig. 4).

    With sequence parallelism each is an all-gather and a reduce-scatter instead, of the same bytes in all
    (Korthikanti et al. 2022, arXiv 2205.05198). torch's ``ColwiseParallel`` on q, k and v apart reduces the gradient
    of each one's input: two all-reduces more a layer backward, unless ``PrepareModuleInput`` splits the input once.

    Args:
        layer_bytes: Bytes of the tensor between two halves of a layer, B·S·h·itemsize, of each layer.
        ranks: Over which each layer is split.
        backward: Training.
        sequence: Split along the sequence between the halves.
    """
    sizes = tuple(float(size) for size in layer_bytes for _ in range(2))
    flows = []
    for phase in ("forward", "backward") if backward else ("forward",):
        if sequence:
            flows.append(Flow(f"activations, {phase}", "all-gather", sizes, ranks, "2 × (n-1)/n × B·S·h·itemsize a layer"))
            flows.append(Flow(f"activations, {phase}", "reduce-scatter", sizes, ranks, "2 × (n-1)/n × B·S·h·itemsize a layer"))
        else:
            flows.append(Flow(f"activations, {phase}", "all-reduce", sizes, ranks, "2 × 2(n-1)/n × B·S·h·itemsize a layer"))
    return flows


def vocabulary_parallel(logit_bytes: float, ranks: int) -> list[Flow]:
    """Logits computed in slices of the vocabulary and gathered: (n-1)/n × B·S·V·itemsize (Shoeybi et al. 2019, §3)."""
    return [Flow("logits", "all-gather", (float(logit_bytes),), ranks, "(n-1)/n × B·S·V·itemsize")]


def pipeline(boundary_bytes: float, ranks: int, *, micro_batches: int = 1, backward: bool = True) -> list[Flow]:
    """One micro-batch's activations over each boundary, and their gradients back (Narayanan et al. 2021, arXiv 2104.04473).

    Figures are of an inner stage; the last sends no activations and the first no gradients.

    Args:
        boundary_bytes: Activations of the *whole* batch between two stages; micro-batches divide it.
        ranks: Stages.
        micro_batches: Per step.
        backward: Training.
    """
    sizes = (boundary_bytes / micro_batches,) * micro_batches
    flows = [Flow("activations to the next stage", "send", sizes, ranks, "B·S·h·itemsize, in micro-batches")]
    return [*flows, Flow("gradients to the stage before", "send", sizes, ranks, "B·S·h·itemsize, in micro-batches")] if backward else flows


def expert_parallel(token_bytes: Sequence[float], ranks: int, *, experts_per_token: int, backward: bool = True) -> list[Flow]:
    """Tokens to their experts and back: 2(n-1)/n × tokens·k·h a layer forward, twice with backward (Lepikhin et al. 2020, GShard, arXiv 2006.16668).

    Experts are taken as evenly chosen; what an uneven router sends to one rank can be up to n times as much.

    Args:
        token_bytes: Bytes of one rank's tokens, B·S·h·itemsize, of each mixture layer.
        ranks: Over which the experts are split.
        experts_per_token: k of the router.
        backward: Training.
    """
    sizes = tuple(float(size) * experts_per_token for size in token_bytes for _ in range(2))
    phases = ("forward", "backward") if backward else ("forward",)
    return [Flow(f"tokens, {phase}", "all-to-all", sizes, ranks, "dispatch and combine, each (n-1)/n × tokens·k·h·itemsize") for phase in phases]


def parameter_server(parameter_bytes: float, gradient_bytes: float, workers: int, *, shards: int = 1) -> dict[str, float]:
    """Bytes of one step with a parameter server (Li et al. 2014, "Scaling Distributed Machine Learning with the Parameter Server", OSDI).

    Args:
        parameter_bytes: P, pulled by each worker.
        gradient_bytes: G, pushed by each worker; compressed or sparse gradients are what they really take.
        workers: Without the servers.
        shards: Servers that share the parameters.

    Returns:
        ``worker_sent`` G, ``worker_received`` P, ``server_received`` nG and ``server_sent`` nP, both over the shards.
    """
    return {
        "worker_sent": gradient_bytes,
        "worker_received": parameter_bytes,
        "server_received": workers * gradient_bytes / shards,
        "server_sent": workers * parameter_bytes / shards,
    }


def sparse_gradient_bytes(values: int, *, itemsize: int = 4, index_itemsize: int = 4) -> int:
    """Bytes of a gradient sent as its `values` largest or touched entries: an index and a value each (Aji & Heafield 2017, arXiv 1704.05021)."""
    return values * (itemsize + index_itemsize)


def kv_transfer(layers: int, tokens: int, kv_heads: int, head_size: int, itemsize: int = 2) -> int:
    """Bytes of the keys and values that a prefill server hands to a decode server: 2·L·S·n_kv·d·itemsize a request (Zhong et al. 2024, DistServe, OSDI)."""
    return 2 * layers * tokens * kv_heads * head_size * itemsize


def ring_attention(kv_bytes_of_layer: float, ranks: int, layers: int) -> list[Flow]:
    """Context parallelism: each rank's keys and values go once around, (n-1)/n × KV a layer (Liu et al. 2023, arXiv 2310.01889)."""
    return [Flow("keys and values", "all-gather", (float(kv_bytes_of_layer),) * layers, ranks, "(n-1)/n × key and value bytes a layer")]
