"""Tells whether Kubernetes manifests still say what the spec says that they were made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import SpecError
from ..records import Finding, ServingSpec
from ..spec import is_spec, lint_spec, parse_documents, read_documents, spec_from_data
from .json import SPEC_FILE
from .kubernetes import DIGEST, export

_SUFFIXES = (".yaml", ".yml", ".json")


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


def check_folder(folder: Path) -> tuple[Finding, ...]:
    """Check the folder of an export: its spec, and its manifests against it.

    Raises:
        SpecError: the folder holds neither, or a file cannot be read.
    """
    documents = _read_folder(folder)
    spec = _find_spec(documents)
    manifests = {name: found for name, found in documents.items() if _are_ours(found)}
    if spec is None:
        if not manifests:
            raise SpecError(f"{folder} holds no resource spec and no manifests made from one", help="aimass spec ... --out FOLDER writes them")
        return (_no_spec(next(iter(manifests))),)
    drift = tuple(_compare(manifests, spec, complete=True)) if manifests else ()
    return (*lint_spec(spec), *drift)


def check_manifest_file(path: Path) -> tuple[Finding, ...]:
    """Check one manifest file against the spec in it, or in another file of its folder.

    Raises:
        SpecError: it is no manifest made from a spec, or a file cannot be read.
    """
    documents = {path.name: read_documents(path)}
    if not _are_ours(documents[path.name]):
        raise SpecError(f"{path} is neither a resource spec nor a manifest made from one", help=f"such a manifest has the annotation {DIGEST}")
    own = _find_spec(documents)
    spec = own or _find_spec(_read_folder(path.parent))
    if spec is None:
        return (_no_spec(path.name),)
    return (*lint_spec(spec), *_compare(documents, spec, complete=own is not None and len(documents[path.name]) > 1))


def _no_spec(where: str) -> Finding:
    text = f"the spec that these manifests were made from is not beside them, so nothing vouches for their numbers; keep spec-configmap.yaml or {SPEC_FILE}"
    return Finding(code="E-NO-SPEC", path=where, text=text)


def _read_folder(folder: Path) -> dict[str, list[Any]]:
    return {path.name: read_documents(path) for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES and path.is_file()}


def _find_spec(documents: Mapping[str, list[Any]]) -> ServingSpec | None:
    for name, found in documents.items():
        if is_spec(found):
            return spec_from_data(found[0], name)
        for document in found:
            data = document.get("data") if isinstance(document, dict) and document.get("kind") == "ConfigMap" else None
            if isinstance(data, dict) and isinstance(data.get(SPEC_FILE), str):
                return spec_from_data(parse_documents(data[SPEC_FILE], f"{SPEC_FILE} in {name}", is_json=True)[0], name)
    return None


def _are_ours(documents: list[Any]) -> bool:
    return any(_digest(document) is not None for document in documents)


def _digest(document: Any) -> str | None:
    try:
        digest = document["metadata"]["annotations"][DIGEST]
    except (KeyError, TypeError, IndexError):
        return None
    return str(digest)


def _name(document: Any) -> tuple[str, str]:
    metadata = document.get("metadata") or {}
    return str(document.get("kind")), str(metadata.get("name") if isinstance(metadata, dict) else None)


def _compare(documents: Mapping[str, list[Any]], spec: ServingSpec, *, complete: bool) -> Iterator[Finding]:
    expected = {_name(document): document for text in export(spec).values() for document in parse_documents(text, "the export")}
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


def _compare_document(file: str, document: dict[str, Any], expected: dict[str, Any], spec: ServingSpec) -> Iterator[Finding]:
    if _digest(document) != spec.digest:
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
