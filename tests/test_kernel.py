"""A real kernel, interrupted as JupyterLab's Stop button does: what was found is kept, and the kernel lives."""

import asyncio
import gc
import os
import threading
import time
import warnings

import pytest
from jupyter_client.manager import start_new_kernel

SETUP = """
import torch
from torch import nn
from aimass_lab import Study
%load_ext aimass_lab
torch.manual_seed(0)
model, x = nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)], nn.Linear(512, 8)), torch.randn(8, 512)
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
study = Study(model, x)
study.demand()
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel")
    pair = list(start_new_kernel(cwd=str(folder), env={**os.environ, "AIMASS_STORE": str(folder / "history.db")}))
    run(pair[1], SETUP)
    yield pair
    manager, client = pair
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    with warnings.catch_warnings():
        # jupyter_client leaves event loops to the garbage collector, which complains: let it, here and now.
        warnings.simplefilter("ignore", ResourceWarning)
        pair.clear()
        del manager, client
        asyncio.set_event_loop(None)
        gc.collect()


def run(client, code, *, timeout=120):
    """Execute a cell; return its reply and the texts it showed."""
    shown = []

    def keep(message):
        content = message["content"]
        if message["msg_type"] in ("execute_result", "display_data", "update_display_data"):
            shown.append(content["data"].get("text/plain", ""))
        elif message["msg_type"] == "stream":
            shown.append(content["text"])

    reply = client.execute_interactive(code, timeout=timeout, output_hook=keep, store_history=False)
    return reply["content"], "\n".join(shown)


def interrupt_after(manager, client, code, seconds):
    """Start a cell, interrupt the kernel after a while, and wait for the cell's end."""
    timer = threading.Timer(seconds, manager.interrupt_kernel)
    timer.start()
    start = time.monotonic()
    try:
        reply, shown = run(client, code)
    finally:
        timer.cancel()
    return reply, shown, time.monotonic() - start


def test_progress_is_shown_while_it_works(kernel):
    _, client = kernel
    reply, shown = run(client, "%aimass search study --recipe none --recipe channels_last --batch 1 --batch 8 --seconds 6")
    assert reply["status"] == "ok"
    assert "%" in shown
    assert "Search on Sequential" in shown


def test_an_interrupted_search_keeps_what_it_tried(kernel):
    manager, client = kernel
    sizes = " ".join(f"--batch {2**k}" for k in range(12))
    line = f"%aimass search study --recipe bf16 --recipe int8_weight_only --recipe int8_dynamic {sizes} --seconds 110"
    reply, shown, seconds = interrupt_after(manager, client, line, 12)
    assert reply["status"] == "ok", reply
    assert seconds < 60
    assert "interrupted" in shown
    reply, shown = run(client, "print(len(study.results[-1].candidates) >= 1, study.results[-1].stopped)")
    assert shown.startswith("True")


def test_after_an_interrupt_the_model_is_as_it_was_and_the_kernel_works(kernel):
    manager, client = kernel
    interrupt_after(manager, client, "%aimass profile study --seconds 30 --batch 64", 2)
    reply, shown = run(client, "print(all(torch.equal(before[n], t) for n, t in model.state_dict().items()), model.training, study.demand().flops.value > 0)")
    assert reply["status"] == "ok"
    assert shown.strip() == "True True True"


def test_too_much_memory_is_an_answer_and_not_the_end_of_the_kernel(kernel):
    _, client = kernel
    reply, _ = run(client, f"%aimass profile study --batch {2**36}")
    assert reply["status"] == "error"
    assert "does not fit" in reply["evalue"]
    reply, shown = run(client, "print(model(x).shape)")
    assert "torch.Size([8, 8])" in shown
