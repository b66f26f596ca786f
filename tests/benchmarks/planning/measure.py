"""Measures what share of wrong manifests the check catches, by its schemas and rules alone: without the comparison with the spec's own export.

``python tests/benchmarks/planning/measure.py [CRD FOLDER ...]`` prints the table that MANIFESTS.md quotes, the uncaught by name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from defects import LAST, LATER, MISTAKES, Mistake, apply, halves, mutate  # noqa: E402
from specs import gpu, make  # noqa: E402

from aimass_lab.export import read_exporter  # noqa: E402
from aimass_lab.export._manifests import read_definitions  # noqa: E402
from aimass_lab.manifests import Schemas, is_manifest, lint_manifests  # noqa: E402
from aimass_lab.spec import parse_documents  # noqa: E402

EXPORTS = ("kubernetes(scaler=keda, alerts=true, network_policy=true, quota=true, priority=1000, ingress=nginx, host=digits.example)", "kubernetes",
           "kubernetes(gateway=edge, host=digits.example)", "kserve", "kserve(mode=Knative)", "ray", "kueue")  # fmt: skip
SEED = 20251129


def documents(to: str, spec: Any) -> list[dict[str, Any]]:
    """What an export's check looks at."""
    return [d for name, text in read_exporter(to).export(spec).items() for d in parse_documents(text, name) if is_manifest(d)]


def findings(manifests: Sequence[Any], schemas: Schemas) -> set[tuple[str, str, str]]:
    """Code, path and text of what is found."""
    return {(f.code, f.path, f.text) for f in lint_manifests({"m.yaml": list(manifests)}, spec=make(), schemas=schemas)}


def mistakes(which: Sequence[Mistake], schemas: Schemas) -> dict[str, set[str]]:
    """Name -> the codes of what is found in the changed manifests, and not in those they were made from."""
    before = {to: documents(to, make()) for to in {mistake.to for mistake in which}}
    known = {to: findings(manifests, schemas) for to, manifests in before.items()}
    return {m.name: {code for code, *_ in findings(apply(before[m.to], m.changes), schemas) - known[m.to]} for m in which}


def mutations(schemas: Schemas, per_document: int) -> dict[str, set[str]]:
    """What, where -> codes; of every kind that there is a schema for."""
    found = {}
    for to in EXPORTS:
        for spec in (make(), gpu()):
            if spec.accelerators.value and "ingress" in to:
                continue
            before = documents(to, spec)
            known = findings(before, schemas)
            for mutation in mutate(before, lambda d: schemas.resolved(f"{d['apiVersion']}/{d['kind']}"), seed=SEED, per_document=per_document):
                after = [
                    d if (d["kind"], d["metadata"]["name"]) != (mutation.kind, mutation.document["metadata"]["name"]) else mutation.document for d in before
                ]
                found[f"{to.partition('(')[0]} {spec.name} {mutation.kind} {mutation.path}: {mutation.how}"] = {
                    code for code, *_ in findings(after, schemas) - known
                }
    return found


def report(title: str, found: dict[str, set[str]]) -> None:
    """One line, and the uncaught."""
    hits = [name for name, codes in found.items() if codes]
    errors = [name for name, codes in found.items() if any(code.startswith("E-") for code in codes)]
    print(f"{title}: {len(hits)} of {len(found)} caught ({100 * len(hits) / len(found):.0f} %), {len(errors)} of them as errors")
    for name in found.keys() - set(hits):
        print(f"  not caught: {name}")


def main(paths: Sequence[str]) -> None:
    """Print everything."""
    for title, schemas in (("shipped schemas", Schemas()), ("with the definitions of custom resources", read_definitions(paths)))[: 1 + bool(paths)]:
        training, held_out = halves()
        report(f"{title}, real mistakes, training half", mistakes(training, schemas))
        report(f"{title}, real mistakes, held-out half", mistakes(held_out, schemas))
        report(f"{title}, mistakes collected after the rules", mistakes(LATER, schemas))
        report(f"{title}, mistakes that nothing was tuned for", mistakes(LAST, schemas))
        report(f"{title}, mutations along the schemas", mutations(schemas, 12))
    print(f"{len(MISTAKES) + len(LATER) + len(LAST)} real mistakes")


if __name__ == "__main__":
    main(sys.argv[1:])
