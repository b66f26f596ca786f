"""Stories of a person at work, walked through in a real browser: each has to come out as told, and gives the times that it took."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from labserver import ask, command, wait_idle

from aimass_lab.serving.client import DATATYPES, Client
from aimass_lab.serving.grpc_messages import INFERENCE_SERVICE, message
from aimass_lab.store import Store

PATIENCE_MS = 900_000
"""Of a large model on a small machine; nothing here ends by a time."""
PANEL = "#aimass-lab-panel"

RUN = """async source => {
  const { commands, shell } = window.jupyterapp;
  const notebook = shell.currentWidget.content;
  const cells = notebook.model.sharedModel;
  cells.insertCell(cells.cells.length, { cell_type: 'code', source });
  notebook.activeCellIndex = cells.cells.length - 1;
  const area = notebook.activeCell.outputArea;
  const began = performance.now();
  const told = [];
  const look = () => {
    const text = area.node.innerText.trim();
    if (text && text !== told.at(-1)?.text) told.push({ text, seconds: (performance.now() - began) / 1e3 });
  };
  const watch = new MutationObserver(() => requestAnimationFrame(look));
  watch.observe(area.node, { childList: true, subtree: true, characterData: true });
  const fine = await commands.execute('notebook:run-cell');
  await new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)));
  watch.disconnect();
  look();
  const outputs = area.node.querySelectorAll('.jp-OutputArea-child').length;
  return { seconds: (performance.now() - began) / 1e3, fine: fine !== false, text: area.node.innerText, told, outputs };
}"""
"""Add a cell, run it, and say what stood below it and since when, until it was done and drawn."""

REACTS = """([event, selector]) => {
  const times = (window.reactions ??= {})[event] = [];
  let at = null;
  document.addEventListener(event, ({ buttons }) => { if (buttons) at = performance.now(); }, true);
  new MutationObserver(() => {
    if (at === null) return;
    const from = at;
    at = null;
    requestAnimationFrame(() => times.push((performance.now() - from) / 1e3));
  }).observe(document.querySelector(selector), { childList: true, subtree: true, characterData: true });
}"""
"""From what a hand does while it holds something to the frame that shows what came of it, each time that it changes something in `selector`; by event."""


@dataclass(frozen=True)
class Subject:
    """The model that the stories are about, and what is asked of it."""

    name: str
    type: str
    """The class of the model."""
    make: str
    """A cell that makes ``model``, ``x`` and ``data``, keyword arguments of a `Study`."""
    item_bytes: int
    """Of one item in the largest tensor that its first layer makes."""
    rate: float
    p99: str
    recipe: str
    search: str
    """Options of the search."""
    search_p99: str
    """Within which what it finds shall answer."""


@dataclass(frozen=True)
class Step:
    """One thing that the person waits for."""

    what: str
    target_s: float | None
    """None where none was set."""
    seconds: float
    outcome: str = ""
    """What came out, where that is more than a time."""


@dataclass(frozen=True)
class Ran:
    """What became of a cell."""

    seconds: float
    fine: bool
    text: str
    told: list[dict[str, Any]]
    """``text`` below it and the ``seconds`` after which it stood there, each time that it was another."""
    outputs: int
    """Number of outputs that are left."""

    def when(self, *words: str) -> float:
        """Seconds until all of these stood below it at once, in any case."""
        found = [float(one["seconds"]) for one in self.told if all(word.lower() in one["text"].lower() for word in words)]
        assert found, f"{words} never stood there, but {[one['text'][:200] for one in self.told]}"
        return found[0]


@dataclass(frozen=True)
class Walk:
    """A person in front of a notebook."""

    page: Any
    folder: Path
    """Of the notebook."""
    address: str
    subject: Subject
    brisk: bool = False
    """Measure for as short as will do: what is tested then is what comes out, not how good it is."""

    def run(self, source: str, *, fails: bool = False) -> Ran:
        """Write a cell and run it."""
        ran = Ran(**self.page.evaluate(RUN, source))
        assert ran.fine != fails, f"{source}\n{ran.text}"
        return ran

    def seconds(self, number: float) -> str:
        """An option that keeps a measurement short, where the person is in a hurry."""
        return f" --seconds {number:g}" if self.brisk else ""

    @property
    def target(self) -> str:
        """Options of what the service shall hold."""
        return f"--rate {self.subject.rate:g} --p99 {self.subject.p99}"


def first_look(walk: Walk) -> list[Step]:
    """First look: one line, and the model is as it was."""
    walk.run(walk.subject.make)
    walk.run("before, mode = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.training")
    ran = walk.run(f"%load_ext aimass_lab\n%aimass profile model x{walk.seconds(2)}")
    for words in ("latency p50", "latency p99", "peak memory", "Time by module"):
        assert words.lower() in ran.text.lower(), words
    assert ran.outputs == 1  # the profile has taken the place of what stood there before
    card = ("class", "parameters", "weights", "dtype", "device")
    assert "dtype" not in ran.text
    assert walk.subject.type in next(one["text"] for one in ran.told if "dtype" in one["text"])
    assert ask(walk.page, "print(all(torch.equal(before[name], t) for name, t in model.state_dict().items()), model.training == mode)") == "True True"
    return [
        Step("first words below the cell", 1, ran.when()), Step("the card: who the model is, its parameters and weights", 1, ran.when(*card)),
        Step("FLOPs and activations on the card", 1, ran.when(*card, "FLOPs of a call", "activations")), Step("the profile", 5, ran.seconds),
    ]  # fmt: skip


def why_is_it_slow(walk: Walk) -> list[Step]:
    """Why is it slow: a click on the widest area of the workbench."""
    page = walk.page
    walk.run(f"from aimass_lab import Study\nstudy = Study(model, x, **data)\n%aimass profile study{walk.seconds(2)}\n%aimass demand study")
    opened = walk.run("%aimass workbench study")
    page.wait_for_selector(".aw .aw-cells g.aw-cell")
    widest = page.evaluate(
        """() => {
          const share = g => parseFloat(g.querySelector('rect').style.fillOpacity);
          const leaves = [...document.querySelectorAll('.aw .aw-cells g.aw-cell')].filter(g => g.dataset.row);
          return leaves.sort((a, b) => share(b) - share(a))[0].dataset.row;
        }"""
    )
    page.evaluate(REACTS, ["pointerdown", ".aw-body"])
    page.locator(f".aw .aw-cells g.aw-cell[data-row='{widest}'] > rect").click(position={"x": 3, "y": 3})
    page.wait_for_function("() => window.reactions.pointerdown.length > 0")
    detail = page.locator(".aw-section", has=page.locator("h4")).inner_text()
    assert widest in detail
    assert "own time" in detail
    assert "limited by" in detail
    assert widest in page.locator("code.aw-code").inner_text()
    return [
        Step("the workbench, drawn", None, opened.seconds),
        Step("from the click to its details", 0.2, page.evaluate("() => window.reactions.pointerdown[0]")),
    ]


def drag_the_batch(walk: Walk) -> list[Step]:
    """Drag the batch: the curves follow the hand, and where it is let go is measured."""
    page = walk.page
    page.locator(".aw-tab", has_text="What-if").click()
    page.locator(".aw .aw-primary", has_text="Fit the curves").click()
    page.wait_for_selector(".aw-drag")
    idle = "() => !document.querySelector('.aw-job progress')"
    page.wait_for_function(idle)
    for event in ("pointerdown", "pointermove"):
        page.evaluate(REACTS, [event, ".aw-four"])
    box = page.locator(".aw-drag").first.bounding_box()
    across = [0.25 + 0.05 * step for step in range(12)]
    page.mouse.move(box["x"] + across[0] * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.wait_for_function("() => window.reactions.pointerdown.length > 0")
    for share in across:
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])
    page.wait_for_function("n => window.reactions.pointermove.length >= n", arg=len(across) // 2)
    pressed, slowest = page.evaluate("() => [window.reactions.pointerdown[0], Math.max(...window.reactions.pointermove)]")
    batch = page.locator(".aw input[type=number]").first.input_value()
    page.mouse.up()
    let_go = time.perf_counter()
    page.wait_for_function("() => /predicted .* measured/.test(document.querySelector('.aw-lead').textContent)")
    landed_s = time.perf_counter() - let_go
    assert page.locator(".aw-lead").inner_text().startswith(f"Batch {batch}: predicted")
    page.wait_for_function(idle)
    return [
        Step("from the press to the numbers", 0.05, pressed), Step("from a movement to the numbers, slowest of twelve", 0.05, slowest),
        Step("from letting go to the measured dot", 10, landed_s),
    ]  # fmt: skip


ANSWERS = """
from aimass_lab.outputs import output_tensors

def answers(call):
    model.eval()
    found = [(name, tensor.detach()) for name, tensor in output_tensors(model(*call.args, **call.kwargs))]
    model.train(mode)
    return found
"""
RESIDENT = "import psutil; print(psutil.Process().memory_info().rss)"


def ask_too_much(walk: Walk) -> list[Step]:
    """Ask too much: told before anything runs; forced, it fails, the memory comes back, and the model still works."""
    page = walk.page
    # One layer of so many items would fill the whole machine; the inputs are a small part of it, and can be made.
    batch = int(ask(page, f"from aimass_lab.environment import usable_memory_bytes; print(usable_memory_bytes() // {walk.subject.item_bytes})"))
    ask(page, f"{ANSWERS}\nexpected = answers(study.workload.call)")
    told = walk.run(f"%aimass demand study --batch {batch}")
    assert "does not fit" in told.text
    refused = walk.run(f"%aimass profile study --batch {batch}", fails=True)
    assert f"a batch of {batch} does not fit" in refused.text
    assert "is predicted to fit" in refused.text
    before = int(ask(page, RESIDENT))
    forced = walk.run(f"%aimass profile study --batch {batch} --force", fails=True)
    assert "out of memory while running" in forced.text
    began = time.perf_counter()
    left = int(ask(page, RESIDENT)) - before
    back_s = time.perf_counter() - began
    inputs = int(ask(page, f"call = study.workload.call; print({batch} * sum(t.nbytes for t in call.tensors()) // call.batch_size)"))
    assert left < inputs / 2, f"{left} bytes were not given back, of inputs of {inputs}"
    assert ask(page, "print(all(torch.allclose(a, b, atol=1e-4) for (_, a), (_, b) in zip(answers(call), expected, strict=True)))") == "True"
    return [
        Step("the demand, with the words that it does not fit", 1, told.seconds), Step("the refusal of a profile", 1, refused.seconds),
        Step("the forced profile, until it has failed", None, forced.seconds), Step("from then on, until the kernel says that the memory is back", 2, back_s),
    ]  # fmt: skip


def try_compression(walk: Walk) -> list[Step]:
    """Try compression: a preview, a verdict with its reasons, and back again."""
    preview = walk.run("%aimass predict study --technique int8_dynamic")
    assert "predicted" in preview.text
    tried = walk.run(f"%aimass trial study '{walk.subject.recipe}'{walk.seconds(2)}")
    assert any(verdict in tried.text for verdict in ("faster", "no gain", "slower", "cannot tell", "not equivalent"))
    assert "on disk" in tried.text
    back = walk.run("study.undo()\nprint(len(study.variants.items), all(torch.equal(before[name], t) for name, t in model.state_dict().items()))")
    assert back.text.strip() == "0 True"
    return [Step("the preview", 2, preview.seconds), Step("the trial, side by side", 30, tried.seconds), Step("undo", None, back.seconds)]


def tune_to_a_promise(walk: Walk) -> list[Step]:
    """Tune to a promise: a usable best soon, Stop keeps it, and it comes as code."""
    page = walk.page
    command(page, "aimass-lab:open-panel")
    # A machine that is busy takes long to find anything, and may hold no p99 at all; it is Stop that ends the search.
    budget_s, p99 = (PATIENCE_MS / 1e3, "60s") if walk.brisk else (120, walk.subject.search_p99)
    line = f"%aimass search study {walk.subject.search} --p99 {p99} --seconds {budget_s:g}"
    began = time.perf_counter()
    page.evaluate(f"source => {{ window.searched = ({RUN})(source); }}", line)
    page.wait_for_function("panel => document.querySelector(`${panel} .jp-aimass-Running`)?.innerText.includes('best so far')", arg=PANEL)
    usable_s = time.perf_counter() - began
    page.locator(f"{PANEL} .jp-aimass-Running").get_by_role("button", name="Stop").click()
    stopped = time.perf_counter()
    ran = Ran(**page.evaluate("() => window.searched"))
    stop_s = time.perf_counter() - stopped
    assert ran.fine, ran.text
    assert "interrupted" in ran.text
    assert "the best as code" in ran.text
    return [Step("until there is a usable best", 15, usable_s), Step("from Stop to the result", None, stop_s)]


def plan_a_service(walk: Walk) -> list[Step]:
    """Plan: replicas, batching and p99 for a rate."""
    planned = walk.run(f"%aimass plan study {walk.target} --price cpu=0.10")
    for words in ("replicas", "batch limit", "latency p99", "cost"):
        assert words in planned.text, words
    return [Step("the plan", 3, planned.seconds)]


def export_the_spec(walk: Walk) -> list[Step]:
    """Export the spec: Kubernetes, where every number says where it comes from; checked without a cluster; the same for others."""
    page, folder = walk.page, walk.folder
    written = walk.run(f"%aimass spec study {walk.target} --out deploy")
    files = "\n".join(path.read_text() for path in sorted((folder / "deploy").glob("*.yaml")))
    for words in ("requests:", "limits:", "startupProbe:", "readinessProbe:", "kind: HorizontalPodAutoscaler"):
        assert words in files, words
    keys = ("cpu", "memory", "replicas", "minReplicas", "maxReplicas", "averageUtilization", "failureThreshold")
    for key in keys:
        assert re.search(rf"^\s*{key}: \S+  # \S", files, re.MULTILINE), key
    asked_bytes = int(float(ask(page, "print(study.results[-1].memory_bytes.value)")))
    assert f'memory: "{-(-asked_bytes // 2**20)}Mi"  # ' in files
    checked = walk.run("%aimass check deploy")
    assert "PASS" in checked.text
    steps = [Step("the spec for Kubernetes", None, written.seconds), Step("its check, without a cluster", 1, checked.seconds)]
    for name, title, words in (("kserve", "KServe", "kind: InferenceService"), ("compose", "Compose", "services:")):
        other = walk.run(f"%aimass spec study {walk.target} --format {name} --out deploy-{name}")
        assert any(words in path.read_text() for path in (folder / f"deploy-{name}").glob("*.yaml")), name
        steps.append(Step(f"the same plan for {title}", None, other.seconds))
    return steps


VERDICTS = {0: "PASS", 5: "NOT JUDGED"}
"""By exit code, of a proof that found nothing wrong; the latter where other work kept the machine busy."""


def answers_of(url: str, address: str, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a bundle's server answers over REST and over gRPC."""
    with Client(url) as client:
        over_rest = client.infer(inputs)
        model = client.metadata()["name"]
    request = message("inference.ModelInferRequest")(model_name=model)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    response = message("inference.ModelInferResponse")
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary(f"/{INFERENCE_SERVICE}/ModelInfer", lambda made: made.SerializeToString(), response.FromString)
        answer = call(request, timeout=60, wait_for_ready=True)
    contents = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return over_rest, {output.name: np.frombuffer(raw, over_rest[output.name].dtype).reshape(tuple(output.shape)) for output, raw in contents}


def export_the_server(walk: Walk) -> list[Step]:
    """Export the server: REST and gRPC, a load test from the workbench against its promises, and again where it was moved to."""
    page, folder = walk.page, walk.folder
    written = walk.run(f"%aimass bundle study {walk.target} --out out")
    ask(page, f"{ANSWERS}\nimport numpy\none = study.workload.call.rows(0, 1)\nasked, right = dict(one.named_tensors(model)), dict(answers(one))")
    for name in ("asked", "right"):
        ask(page, f"numpy.savez('{name}.npz', **{{key: tensor.numpy() for key, tensor in {name}.items()}})")
    began = time.perf_counter()
    served = walk.run("%aimass serve out --port 0 --grpc-port 0")
    url, address = re.search(r"http://[\d.]+:\d+", served.text), re.search(r"gRPC\s+([\d.]+:\d+)", served.text)
    assert url, served.text
    assert address, served.text
    with np.load(folder / "asked.npz") as asked:
        over_rest, over_grpc = answers_of(url[0], address[1], dict(asked))
    answered_s = time.perf_counter() - began
    with np.load(folder / "right.npz") as right:
        for name, expected in right.items():
            np.testing.assert_allclose(over_rest[name], expected, atol=1e-3, rtol=1e-3)
            np.testing.assert_array_equal(over_grpc[name], over_rest[name])
    walk.run("%aimass workbench study --view ship")
    page.wait_for_selector(".aw [data-promise=fidelity]")
    began = time.perf_counter()
    if walk.brisk:
        ask(page, "from aimass_lab.frontends.widgets.panel import open_panels; _ = open_panels()[-1].run('aimass_lab.check(\"out\", seconds=2)')")
    else:
        page.locator(".aw button", has_text="Prove them").click()
    page.wait_for_function("() => /^(PASS|FAIL|NOT JUDGED)/.test([...document.querySelectorAll('.aw .aw-lead')].at(-1).textContent)")
    proved_s = time.perf_counter() - began
    verdict = page.locator(".aw .aw-lead").last.inner_text()
    assert verdict.startswith(tuple(VERDICTS.values())), verdict
    for promise in ("errors", "fidelity"):
        assert page.locator(f".aw [data-promise={promise}] .aw-state").last.inner_text() == "PASS"  # before it stands the picture that it left behind
    moved = folder / "elsewhere" / "moved"
    shutil.copytree(folder / "out", moved)
    again = [sys.executable, "run.py", "verify", *(("--duration", "2") if walk.brisk else ())]
    began = time.perf_counter()
    verified = subprocess.run(again, cwd=moved, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, capture_output=True, text=True)
    verified_s, code = time.perf_counter() - began, verified.returncode
    assert code in VERDICTS, verified.stdout + verified.stderr
    return [
        Step("the bundle", 20, written.seconds), Step("until it has answered over REST and over gRPC", 10, answered_s),
        Step("from the click to the verdict", None, proved_s, verdict.split(":")[0]), Step("its own proof, moved elsewhere", None, verified_s, VERDICTS[code]),
    ]  # fmt: skip


def next_month(walk: Walk) -> list[Step]:
    """Next month, on another machine: the saved notebook still shows everything, and two runs are compared without the model."""
    page = walk.page
    shown = page.locator(".jp-OutputArea-output .aimass").count()
    command(page, "docmanager:save")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    command(page, "kernelmenu:shutdown")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.sessionContext.session")
    began = time.perf_counter()
    page.goto(walk.address)
    page.wait_for_function("n => document.querySelectorAll('.jp-OutputArea-output .aimass').length === n", arg=shown)
    opened_s = time.perf_counter() - began
    assert page.locator(".aw-picture .aw-plot, .aw-picture .aw-gauge").count() > 0
    wait_idle(page)
    after, before = [run.id for run in Store(walk.folder / ".history.db").runs(limit=500) if run.verb == "profile"][:2]
    compared = walk.run(f"%load_ext aimass_lab\n%aimass compare {before} {after}")
    assert f"Run {before} and run {after}" in compared.text
    assert "same within spread" in compared.text or "higher" in compared.text or "lower" in compared.text
    return [Step("the notebook, opened again", None, opened_s), Step("two runs compared, in a new kernel", None, compared.seconds)]


STORIES: tuple[Callable[[Walk], list[Step]], ...] = (
    first_look, why_is_it_slow, drag_the_batch, ask_too_much, try_compression, tune_to_a_promise, plan_a_service, export_the_spec, export_the_server,
    next_month,
)  # fmt: skip
"""In the order in which they are walked: each goes on with what the ones before left in the kernel."""


# --- whom they are about ---------------------------------------------------------------------

DIGITS = Subject(
    name="digits CNN",
    type="Sequential",
    make="""\
import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
model = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                      nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for rows in torch.randperm(1200).split(32) * 3:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
    optimizer.step()
x = images[:4]
accuracy = lambda outputs, labels: (outputs.argmax(1) == labels).float().mean().item()
data = {"data": (images[1200:], labels[1200:]), "metric": accuracy, "name": "digits"}
""",
    item_bytes=32 * 8 * 8 * 4,
    rate=20,
    p99="500ms",
    recipe="channel_pruning(ratio=0.3) + int8_dynamic",
    search="--max-drop 0.05",
    search_p99="20ms",
)  # fmt: skip

BERT = Subject(
    name="BERT-base",
    type="BertModel",
    make="""\
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
model = BertModel(BertConfig()).eval()
x = {"input_ids": torch.randint(0, 30_000, (1, 128)), "attention_mask": torch.ones(1, 128, dtype=torch.long)}
data = {"name": "bert"}
""",
    item_bytes=128 * 768 * 4,
    rate=1,
    p99="2s",
    recipe="int8_dynamic",
    search="--recipe none --recipe int8_dynamic",
    search_p99="2s",
)
"""Its weights are random: what it takes is the same, what it answers means nothing."""
