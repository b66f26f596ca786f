"""Copies between host and a real GPU. Nothing here has been measured yet: where there is none, the summary says so."""

import pytest
import torch
from torch import nn

from aimass_lab.network import estimate_network, make_scenario
from aimass_lab.network.copies import measure_copies
from aimass_lab.workload import Workload

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: not measured here")]


def test_copies_are_measured_and_take_longer_for_more_bytes():
    device = torch.device("cuda:0")
    for to_device in (True, False):
        small, large = (measure_copies([size], device, to_device=to_device, environment="here") for size in (2**20, 2**28))
        assert small.source == large.source == "measured"
        assert large.value > 10 * small.value
        assert 1e9 < 2**28 / large.value < 100e9


def test_the_record_holds_what_was_measured():
    model = nn.Linear(1024, 512).cuda()
    demand = estimate_network(Workload(model, torch.randn(64, 1024, device="cuda")), make_scenario(device="cuda:0"))
    assert demand.host_to_device_bytes.value == 64 * 1024 * 4
    assert demand.device_to_host_bytes.value == 64 * 512 * 4
    assert demand.host_to_device_time.source == "measured"
    assert demand.device_to_host_time.interval[0] <= demand.device_to_host_time.value
