"""The stand-in for NVIDIA's driver is held against the real binding, wherever that is installed: the same names, numbers, arguments, fields and errors."""

from __future__ import annotations

import ast
import inspect
import os
from pathlib import Path

import pytest
from standin_nvml import ERRORS, NVMLError, a_gpu, nvml, process, share

from aimass_lab.readings import gpu_processes
from aimass_lab.readings import nvml as readings

pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install 'aimass-lab[gpu]'")

STANDIN = nvml()
FUNCTIONS = [name for name, value in vars(STANDIN).items() if name.startswith("nvml") and callable(value)]
NUMBERS = [name for name, value in vars(STANDIN).items() if isinstance(value, int) and name != "open"]  # which counts sessions
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def names_in_use():
    """What our readings ask of the module, by the names in their code, and by those that they put together."""
    found = {f"nvmlDeviceGet{kind}RunningProcesses" for kind in gpu_processes._LISTS} | {f"nvmlClocksEventReason{name}" for name, _ in readings._THROTTLES}
    found |= {f"NVML_PCIE_UTIL_{direction}_BYTES" for direction in ("RX", "TX")}
    for module in (readings, gpu_processes):
        tree = ast.parse(Path(module.__file__).read_text())
        found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith(("nvml", "NVML"))}
    return sorted(found)


@pytest.mark.parametrize("name", names_in_use())
def test_what_the_readings_ask_is_there(name):
    assert hasattr(pynvml, name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_call_takes_what_the_binding_takes(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters.values() for module in (STANDIN, pynvml))
    needed = [p for p in theirs if p.kind in POSITIONAL and p.default is p.empty]
    assert len(needed) == len(ours), [str(p) for p in theirs]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_the_bindings(name):
    assert getattr(pynvml, name) == getattr(STANDIN, name)


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "SUCCESS"])
def test_an_error_is_made_and_says_what_the_bindings_says(name):
    ours, theirs = NVMLError(ERRORS[name]), pynvml.NVMLError(getattr(pynvml, f"NVML_ERROR_{name}"))
    assert isinstance(theirs, Exception)
    assert (theirs.value, str(theirs)) == (ours.value, str(ours))


def _fields(struct):
    return {field[0] for field in struct._fields_}


def test_answers_have_fields_that_the_binding_fills():
    gpu = a_gpu(accounts={os.getpid(): 5})
    accounts = nvml([gpu]).nvmlDeviceGetAccountingStats(gpu, os.getpid())
    for answer, struct in (
        (gpu["utilization"], pynvml.c_nvmlUtilization_t),
        (gpu["memory"], pynvml.c_nvmlMemory_t),
        (process(1, 2), pynvml.c_nvmlProcessInfo_v3_t),
        (share(1, 2), pynvml.c_nvmlProcessUtilizationSample_t),
        (accounts, pynvml.c_nvmlAccountingStats_t),
    ):
        assert set(vars(answer)) <= _fields(struct), struct


def test_without_a_driver_the_binding_refuses_like_the_standin():
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        refused = error
    else:
        pynvml.nvmlShutdown()
        pytest.skip("there is a driver here")
    with pytest.raises(NVMLError) as ours:
        nvml(init_error=refused.value).nvmlInit()
    assert (ours.value.value, str(ours.value)) == (refused.value, str(refused))
    assert readings._why_no_session(pynvml, refused) == readings._why_no_session(STANDIN, ours.value)
