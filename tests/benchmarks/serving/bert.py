"""A BERT-base as a bundle, at full size with random weights: how long it takes to write, step by step, and until its server gives the first right answer.

``python tests/benchmarks/serving/bert.py --rounds 3`` adds rounds to results/bert.json and prints medians and ranges over all of them; ``--again``
forgets those of before. 128 tokens, four example sentences, everything as `write_bundle` does it by default: the proof that the bundle is started for included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from report import plain, spread

from aimass_lab.bundle import write_bundle
from aimass_lab.serving.config import load_config, load_vectors
from aimass_lab.serving.launch import start
from aimass_lab.serving.verify import _rest_client
from aimass_lab.workload import Workload

RESULTS = "bert"
GOALS_S = {"write": 20.0, "start": 10.0}
TOKENS, SENTENCES = 128, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    if options.again:
        results.keep(RESULTS, {})
    workload = bert()
    for _ in range(options.rounds):
        results.add(RESULTS, "facts", found=results.facts())
        results.extend(RESULTS, "rounds", found=[one_round(workload)])
    print(report(results.load(RESULTS)["rounds"]))


def bert() -> Workload:
    """Size and shape of BERT-base, weights drawn at random."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig()
    tokens = torch.randint(0, config.vocab_size, (SENTENCES, TOKENS))
    return Workload(BertModel(config).eval(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


def one_round(workload: Workload) -> dict[str, Any]:
    """Write it and start it once.

    Returns:
        Seconds: ``steps``, from one word of the writer's progress to the next; ``write``, their sum; ``start``, from the command to the first right answer.
    """
    steps: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        began = time.perf_counter()
        write_bundle(folder, workload, progress=lambda share, text: steps.append((text, time.perf_counter())))
        ended = time.perf_counter()
        spent = [after - at for (_, at), after in zip(steps, [*(at for _, at in steps[1:]), ended], strict=True)]
        began_to_start = time.perf_counter()
        with start(folder) as server:
            config = load_config(folder)
            inputs, outputs = load_vectors(folder, config)
            got = _rest_client(config, server)([array[:1] for array in inputs])
            answered = time.perf_counter()
            assert all(np.allclose(a, b[:1], rtol=1e-3, atol=1e-3) for a, b in zip(got, outputs, strict=True)), "a wrong answer"
    named = {text: seconds for (text, _), seconds in zip(steps[:-1], spent[:-1], strict=True)}
    return {"write": ended - began, "steps": named, "start": answered - began_to_start}


def report(rounds: list[dict[str, Any]]) -> str:
    """One line for each figure, in seconds."""
    lines = [f"{len(rounds)} rounds, seconds: median [range]"]
    for name, goal in GOALS_S.items():
        values = [one[name] for one in rounds]
        lines.append(f"{name:10} {spread(values)}   goal {goal:g}")
    for text in rounds[-1]["steps"]:
        lines.append(f"  {text:55} {plain([one['steps'][text] for one in rounds if text in one['steps']])}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
