"""Checks manifests: by their schemas, by the linter, and against the spec that they were made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..errors import SpecError
from ..manifests import Schemas, is_manifest, lint_manifests
from ..records import Finding, JobPlan, ServingSpec
from ..spec import is_spec, lint_spec, parse_documents, read_documents, spec_from_data
from ._chart import render
from ._workload import DIGEST
from .base import read_exporter
from .compose import DIGEST_KEY
from .jobs import read_job_exporter
from .jobs.base import JOBS_FILE
from .json import SPEC_FILE

_SUFFIXES = (".yaml", ".yml", ".json")
_CHART = "Chart.yaml"
Source = ServingSpec | JobPlan
"""What manifests are made from, and carry with them."""


def check_manifests(manifests: str | Path, spec: ServingSpec) -> tuple[Finding, ...]:
    """Compare manifests with what the spec gives today.

    A changed or missing value is an error; one that was added is a warning.

    Args:
        manifests: A folder, a file, or the text itself.
        spec: What they should have been made from.

    Raises:
        SpecError: they cannot be read.
    """
    if isinstance(manifests, str):
        return tuple(_compare({"text": parse_documents(manifests, "the manifests")}, spec, complete=True))
    documents = _read_folder(manifests) if manifests.is_dir() else {manifests.name: read_documents(manifests)}
    return tuple(_compare(documents, spec, complete=manifests.is_dir()))


def check_folder(folder: Path, schemas: Schemas) -> tuple[Finding, ...]:
    """Check a folder of manifests, or the folder of an export: its spec too, and the manifests against it.

    Raises:
        SpecError: the folder holds neither spec nor manifests, or a file cannot be read.
    """
    documents = _read_folder(folder)
    return _check(documents, _specs(documents), schemas, str(folder), complete=True)


def check_manifest_file(path: Path, schemas: Schemas) -> tuple[Finding, ...]:
    """Check one file of manifests, against the spec in it, or in another file of its folder.

    Raises:
        SpecError: it holds no manifest, or a file cannot be read.
    """
    documents = {path.name: read_documents(path)}
    own = _specs(documents)
    ours = any(_digest(document) is not None for document in documents[path.name])
    specs = own or (_specs(_read_folder(path.parent)) if ours else [])
    return _check(documents, specs, schemas, str(path), complete=bool(own) and len(documents[path.name]) > 1)


def _check(documents: Mapping[str, list[Any]], specs: Sequence[tuple[str, Source]], schemas: Schemas, where: str, *, complete: bool) -> tuple[Finding, ...]:
    manifests = {name: kept for name, found in documents.items() if (kept := [d for d in found if is_manifest(d) or _digest(d)])}
    if not manifests and not specs:
        raise SpecError(
            f"{where} is neither a resource spec nor a manifest, and holds no file that is",
            help="manifests have apiVersion and kind, compose files services; aimass spec ... --out FOLDER writes both",
        )
    if not specs:
        ours = [name for name, found in manifests.items() if any(_digest(document) is not None for document in found)]
        return (_no_spec(ours[0]) if ours else _foreign(where), *lint_manifests(manifests, schemas=schemas))
    name, spec = next((found for found in specs if found[1].export_format != "json"), specs[0])
    others = [Finding(code="E-DIGEST", path=other, text=f"is another spec than the one in {name}") for other, found in specs if found.digest != spec.digest]
    drift = tuple(_compare(documents, spec, complete=complete)) if manifests else ()
    service = spec if isinstance(spec, ServingSpec) else None
    own = lint_spec(service) if service else ()
    return (*own, *others, *lint_manifests(manifests, spec=service, schemas=schemas), *drift)


def _no_spec(where: str) -> Finding:
    text = f"the spec that these manifests were made from is not beside them, so nothing vouches for their numbers; keep spec-configmap.yaml or {SPEC_FILE}"
    return Finding(code="E-NO-SPEC", path=where, text=text)


def _foreign(where: str) -> Finding:
    return Finding(
        code="W-NO-SPEC", path=where, text="not made from a resource spec, so only form and agreement are checked, not whether the numbers are enough"
    )


def read_definitions(paths: Sequence[str]) -> Schemas:
    """The shipped schemas, and those of custom resources in files that a cluster gave.

    Raises:
        SpecError: a file cannot be read, or holds no definition of a custom resource.
    """
    found = []
    for path in map(Path, paths):
        for file in sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES) if path.is_dir() else [path]:
            for document in _read_definitions(file):
                items = document.get("items") if isinstance(document, dict) and document.get("kind") == "List" else None
                found += items if isinstance(items, list) else [document]
    return Schemas(found)


def _read_definitions(file: Path) -> list[Any]:
    """Parsed by the compiled parser where there is one: definitions are of megabytes, for which the other takes ten seconds; JSON is faster still."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        return [json.loads(text)] if file.suffix == ".json" else list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"cannot read {file}: {str(error)[:300]}") from error


def _read_folder(folder: Path) -> dict[str, list[Any]]:
    if (folder / _CHART).is_file():
        return _read_chart(folder)
    return {path.name: read_documents(path) for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES and path.is_file()}


def _read_chart(folder: Path) -> dict[str, list[Any]]:
    """What the templates of one of our charts come to, and the spec beside them."""
    values = read_documents(folder / "values.yaml")[0] if (folder / "values.yaml").is_file() else {}
    texts = {f"templates/{path.name}": path.read_text(encoding="utf-8") for path in sorted((folder / "templates").glob("*.yaml"))}
    found = {name: parse_documents(render(text, values, name), name) for name, text in texts.items()}
    spec = folder / SPEC_FILE
    return {**found, **({SPEC_FILE: read_documents(spec)} if spec.is_file() else {})}


def _specs(documents: Mapping[str, list[Any]]) -> list[tuple[str, Source]]:
    found: list[tuple[str, Source]] = []
    for name, parsed in documents.items():
        if is_spec(parsed):
            found.append((name, spec_from_data(parsed[0], name)))
        for document in parsed:
            data = document.get("data") if isinstance(document, dict) and document.get("kind") == "ConfigMap" else None
            if isinstance(data, dict) and isinstance(data.get(SPEC_FILE), str):
                found.append((name, spec_from_data(parse_documents(data[SPEC_FILE], f"{SPEC_FILE} in {name}", is_json=True)[0], name)))
            if isinstance(data, dict) and isinstance(data.get(JOBS_FILE), str):
                found.append((name, _job_plan(parse_documents(data[JOBS_FILE], f"{JOBS_FILE} in {name}", is_json=True)[0], name)))
    return found


def carried_by(path: Path) -> Source | None:
    """What the manifests of a folder or a file were made from, where they carry it.

    Raises:
        SpecError: a file cannot be read.
    """
    found = _specs(_read_folder(path) if path.is_dir() else {path.name: read_documents(path)})
    return found[0][1] if found else None


def _job_plan(data: Any, where: str) -> JobPlan:
    try:
        return msgspec.convert(data, JobPlan)
    except msgspec.ValidationError as error:
        raise SpecError(f"{JOBS_FILE} in {where} is no plan of jobs: {error}") from error


def _digest(document: Any) -> str | None:
    """The digest of the spec that a document says it was made from."""
    for way in (("metadata", "annotations", DIGEST), (DIGEST_KEY,), ("groups", 0, "rules", 0, "annotations", "spec_digest")):
        node = document
        try:
            for step in way:
                node = node[step]
        except (KeyError, TypeError, IndexError):
            continue
        return str(node)
    return None


def _name(document: Any) -> tuple[str, str]:
    """Kind and name of an object; what other files are, by what is in them."""
    if "kind" not in document:
        return next((key for key in ("services", "groups", "applications") if key in document), "document"), ""
    metadata = document.get("metadata") or {}
    return str(document.get("kind")), str(metadata.get("name") if isinstance(metadata, dict) else None)


def _expected(spec: Source) -> dict[tuple[str, str], Any]:
    """What the spec gives today, by kind and name."""
    texts = read_job_exporter(spec.export_format).export(spec) if isinstance(spec, JobPlan) else read_exporter(spec.export_format).export(spec)
    if _CHART in texts:
        values = parse_documents(texts["values.yaml"], "the export")[0]
        texts = {name: render(text, values, name) for name, text in texts.items() if name.startswith("templates/")}
    documents = [document for text in texts.values() for document in parse_documents(text, "the export")]
    return {_name(document): document for document in documents if not is_spec([document])}


def _compare(documents: Mapping[str, list[Any]], spec: Source, *, complete: bool) -> Iterator[Finding]:
    expected = _expected(spec)
    seen = set()
    for file, found in documents.items():
        for document in found:
            if is_spec([document]) or not isinstance(document, dict):
                continue
            name = _name(document)
            if name not in expected:
                text = f"{' '.join(name)} is not made from this spec"
                yield Finding(code="E-DIGEST" if _digest(document) else "W-ADDED", path=file, text=text)
                continue
            seen.add(name)
            yield from _compare_document(file, document, expected[name], spec)
    if complete:
        for kind, name_ in sorted(set(expected) - seen):
            yield Finding(code="E-MISSING", path=f"{kind}/{name_}", text="the spec asks for it, and it is not there")


def _compare_document(file: str, document: dict[str, Any], expected: dict[str, Any], spec: Source) -> Iterator[Finding]:
    if _digest(expected) is not None and _digest(document) != spec.digest:
        text = f"was made from another spec: it carries {_digest(document)}, the spec is {spec.digest}"
        yield Finding(code="E-DIGEST", path=f"{file}#/metadata/annotations", text=text)
        return
    yield from _differences(f"{file}#", document, expected)


def _differences(path: str, found: Any, expected: Any) -> Iterator[Finding]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            pointer = f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}"
            if key not in found:
                yield Finding(code="E-EDITED", path=pointer, text=f"is missing, the spec says {_shown(value)}")
            else:
                yield from _differences(pointer, found[key], value)
        for key in found.keys() - expected.keys():
            yield Finding(code="W-ADDED", path=f"{path}/{key}", text="was added, the spec says nothing about it")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from _differences(f"{path}/{index}", one, other)
    elif found != expected or isinstance(found, bool) != isinstance(expected, bool):
        yield Finding(code="E-EDITED", path=path, text=f"is {_shown(found)}, the spec says {_shown(expected)}")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
