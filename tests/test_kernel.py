"""A real kernel, interrupted as JupyterLab's Stop button does: what was found is kept, and the kernel lives."""

import asyncio
import gc
import os
import threading
import time
import warnings

import pytest
from jupyter_client.manager import start_new_kernel

from aimass_lab.records import KernelState, from_json

# jupyter_client leaves event loops and their sockets to the garbage collector, whenever it comes.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

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


def run(client, code, *, timeout=120, seen=lambda text: None):
    """Execute a cell; return its reply and the texts it showed, each of which `seen` is given as it comes."""
    shown = []

    def keep(message):
        content = message["content"]
        if message["msg_type"] in ("execute_result", "display_data", "update_display_data"):
            shown.append(content["data"].get("text/plain", ""))
        elif message["msg_type"] == "stream":
            shown.append(content["text"])
        if shown:
            seen(shown[-1])

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


def outputs(client, code):
    """What stands below the cell in the end, and what stood in each output before, oldest first."""
    kept, by_id = [], {}

    def keep(message):
        kind, content = message["msg_type"], message["content"]
        if kind == "update_display_data":
            by_id[content["transient"]["display_id"]].append(content["data"])
        elif kind in ("display_data", "execute_result"):
            kept.append((kind, [content["data"]]))
            if "display_id" in content.get("transient", {}):
                by_id[content["transient"]["display_id"]] = kept[-1][1]

    reply = client.execute_interactive(code, timeout=120, output_hook=keep)
    assert reply["content"]["status"] == "ok", reply["content"]
    return kept


def test_a_card_stands_where_the_profile_will_and_grows_into_it(kernel):
    _, client = kernel
    ((kind, states),) = outputs(client, "%aimass profile study --seconds 1")
    assert kind == "display_data"
    cards = [state["text/html"] for state in states if ">dtype<" in state.get("text/html", "")]
    assert "reading the model" in states[0]["text/plain"]
    for words in ("Profile of Sequential", "class", "float32", "weights", "cpu"):
        assert words in cards[0], words
    assert "FLOPs of a call" not in cards[0]  # not before they are counted
    assert "FLOPs of a call" in cards[-1]
    assert "activations" in cards[-1]
    assert any("timing batch" in card for card in cards)  # the progress stands on it
    assert "latency p50" in states[-1]["text/html"]
    assert "latency p50" in states[-1]["text/plain"]
    assert not any("latency p50" in state["text/plain"] for state in states[:-1])
    assert run(client, "print(type(_).__name__, _ is study.results[-1])")[1].strip() == "Profile True"


def test_a_result_that_is_kept_for_oneself_leaves_nothing_below_the_cell(kernel):
    _, client = kernel
    ((kind, states),) = outputs(client, "mine = %aimass profile study --seconds 0.3")
    assert (kind, states[-1]) == ("display_data", {"text/plain": ""})
    assert "latency p50" in outputs(client, "mine")[0][1][-1]["text/plain"]  # it was not lost, and is shown as a value of its own
    assert outputs(client, "mine")[0][0] == "execute_result"


def test_what_fails_leaves_nothing_of_its_progress(kernel):
    _, client = kernel
    seen = []
    reply = client.execute_interactive(f"%aimass profile study --batch {2**36}", timeout=120, output_hook=lambda message: seen.append(message))
    assert reply["content"]["status"] == "error"
    shown = [message["content"]["data"] for message in seen if message["msg_type"] in ("display_data", "update_display_data")]
    assert shown[-1] == {"text/plain": ""}
    assert any("parameters" in data["text/plain"] for data in shown)


def test_an_interrupted_search_keeps_what_it_tried(kernel):
    manager, client = kernel
    sizes = " ".join(f"--batch {2**k}" for k in range(12))
    line = f"%aimass search study --recipe bf16 --recipe int8_weight_only --recipe int8_dynamic {sizes} --seconds 110"
    asked = []

    def interrupt(text):
        if "3 of 36" in text and not asked:
            asked.append(text)
            manager.interrupt_kernel()

    reply, shown = run(client, line, seen=interrupt)
    assert reply["status"] == "ok", reply
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


# --- what it tells the panel -----------------------------------------------------------------


def told(client, code):
    """What the kernel says over its comm while a cell runs, and the texts that it shows."""
    states, shown = [], []

    def keep(message):
        content = message["content"]
        if message["msg_type"] in ("comm_open", "comm_msg") and "state" in content["data"]:
            states.append(from_json(content["data"]["state"], KernelState))
        elif message["msg_type"] in ("execute_result", "display_data"):
            shown.append(content["data"].get("text/plain", ""))

    client.execute_interactive(code, timeout=120, output_hook=keep)
    return states, "\n".join(shown)


def test_the_panel_is_told_of_models_running_verbs_results_and_cells(kernel):
    _, client = kernel
    states, _ = told(client, "%aimass profile study --seconds 1")
    assert {state.running.verb for state in states if state.running} == {"profile"}
    assert max(state.running.share for state in states if state.running) > 0
    last = states[-1]
    assert last.running is None
    assert last.results[0].verb == "profile"
    assert "p50" in last.results[0].headline
    models = {model.name: model for model in last.models}
    assert models["model"].num_parameters == 8 * (512 * 512 + 512) + 512 * 8 + 8
    assert models["model"].weight_bytes == 4 * models["model"].num_parameters
    assert (models["study"].inputs_known, models["model"].inputs_known) == (True, False)
    assert "x" in last.inputs
    assert last.cells[0].first_line == "%aimass profile study --seconds 1"
    assert 0.5 < last.cells[0].wall_time.value < 110


def test_the_cell_that_grew_memory_is_named(kernel):
    _, client = kernel
    told(client, "# a comment\nbig = bytearray(b'1') * 2**27")
    states, _ = told(client, "1/0")
    failed, grew = states[-1].cells[:2]
    assert (failed.raised, failed.gpu_memory_growth_bytes) == ("ZeroDivisionError", None)
    assert abs(grew.memory_growth_bytes.value - 2**27) < 2**24
    told(client, "del big")


def test_a_cell_is_profiled_as_it_stands_and_only_once(kernel):
    _, client = kernel
    ask = "from aimass_lab.frontends.magics import profile_next\nprofile_next(get_ipython())"
    client.execute_interactive(ask, timeout=60, silent=True, store_history=False)
    states, shown = told(client, "y = model(x)\ny.shape")
    assert "Profile of a cell" in shown
    assert states[-1].results[0].verb == "profile"
    assert states[-1].cells[0].first_line == "y = model(x)"  # as the person typed it
    assert [cell.first_line for cell in states[-1].cells].count("y = model(x)") == 1
    assert "Profile of a cell" not in told(client, "y.shape")[1]
