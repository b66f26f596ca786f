"""Interpolation on a GPU: held-out batch sizes of a real ladder, and nothing of what belongs to a CPU."""

import msgspec
import pytest
import torch
from torch import nn

from aimass_lab import Workload
from aimass_lab.prediction.predict import predict_from_profile
from aimass_lab.profiling import profile_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_held_out_batch_sizes_lie_in_their_bands():
    model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(4))).cuda().eval()
    workload = Workload(model, torch.randn(8, 4096, device="cuda"))
    profile = profile_model(workload, ladder=(8, 12, 16, 24, 32, 48, 64, 128), budget_s=3.0)
    measured = {point.batch_size: point for point in profile.ladder}
    anchors = msgspec.structs.replace(profile, ladder=tuple(measured[b] for b in (8, 16, 32, 64)))
    prediction = predict_from_profile(workload, anchors, batch_sizes=(12, 24, 48, 128))
    assert not [note for note in prediction.notes if note.code in ("knee:page-faults", "knee:cache", "W-ALLOCATOR")]
    inside = [p.latency.interval[0] <= measured[p.batch_size].latency_p50.value <= p.latency.interval[1] for p in prediction.points]
    assert sum(inside) >= 3
    for point in prediction.points:
        assert point.peak_memory_bytes.value == pytest.approx(measured[point.batch_size].peak_memory_bytes.value, rel=0.02)
