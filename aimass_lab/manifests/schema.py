"""Checks objects against Kubernetes' own schemas, a closure of which is shipped, and against the definitions of custom resources that a user gives."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SpecError
from ..records import Finding
from .objects import Object, at, entries, mapping

if TYPE_CHECKING:
    from jsonschema.protocols import Validator  # type: ignore[import-untyped, unused-ignore]  # jsonschema ships no types

FILE = Path(__file__).parent / "schemas" / "kubernetes.json"
_OPEN = {"x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"}
_MOST = 5
"""Findings of one object, beyond which more would only repeat themselves."""


@functools.cache
def closure() -> dict[str, Any]:
    """The shipped schemas: ``about``, ``definitions``, and ``kinds`` by ``"apps/v1/Deployment"``."""
    return json.loads(FILE.read_text(encoding="utf-8"))


class Schemas:
    """Those that are shipped, and those of custom resources.

    Args:
        definitions: CustomResourceDefinitions, parsed.

    Raises:
        SpecError: one of them is no such definition.
    """

    def __init__(self, definitions: list[Any] | None = None) -> None:
        self._custom: dict[str, dict[str, Any]] = {}
        self._validators: dict[str, Validator] = {}
        for definition in definitions or []:
            self._custom |= _read_definition(definition)

    def check(self, item: Object) -> Iterator[Finding]:
        """What is wrong with one object; a warning where there is no schema for it."""
        which = f"{item.api}/{item.kind}"
        validator = self._validator(which)
        if validator is None:
            yield _unknown(item)
            return
        for number, error in enumerate(sorted(validator.iter_errors(item.document), key=lambda e: list(map(str, e.absolute_path)))):
            if number == _MOST:
                return
            path = "/".join(str(step).replace("~", "~0").replace("/", "~1") for step in error.absolute_path)
            yield item.finding("E-SCHEMA", path, _said(error))

    def resolved(self, which: str) -> dict[str, Any] | None:
        """The schema of ``"apps/v1/Deployment"`` with every reference in its place, a recursive one left open; None where there is none."""
        if which in self._custom:
            return self._custom[which]
        schema = closure()["kinds"].get(which)
        return None if schema is None else _inline(schema, ())

    def _validator(self, which: str) -> Validator | None:
        if which not in self._validators:
            from jsonschema import Draft202012Validator  # type: ignore[import-untyped, unused-ignore]

            schema = self._custom.get(which)
            if schema is None and which in closure()["kinds"]:
                schema = {**closure()["kinds"][which], "definitions": closure()["definitions"]}
            if schema is None:
                return None
            self._validators[which] = Draft202012Validator(schema)
        return self._validators[which]


def _unknown(item: Object) -> Finding:
    """An object without a schema: of a removed version, or a custom resource."""
    others = sorted(which for which in closure()["kinds"] if which.rpartition("/")[2] == item.kind)
    group = item.api.rpartition("/")[0]
    if (others and any(which.rpartition("/")[0].rpartition("/")[0] == group for which in others)) or (others and group == "extensions"):
        there = ", ".join(which.rpartition("/")[0] for which in others)
        return item.finding("E-API-VERSION", "apiVersion", f"Kubernetes {closure()['about']['release']} has no {item.api}; there is {there}")
    text = f"no schema of {item.api} is here, so only the linter looked at it; give the cluster's own: kubectl get crd NAME -o json, and --crd FILE"
    return item.finding("W-NO-SCHEMA", "apiVersion", text)


def _said(error: Any) -> str:
    """The validator's message, in fewer words where it would repeat the whole object."""
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        extra = sorted(map(str, set(error.instance) - set(known)))
        return f"there is no field {', '.join(map(repr, extra))}; fields are {', '.join(sorted(known))}"[:300]
    if error.validator == "required":
        return str(error.message)[:200].replace("is a required property", "is missing")
    if error.validator == "enum":
        return f"{error.instance!r} is none of {', '.join(str(v) for v in error.validator_value if v is not None)}"[:300]
    return f"{str(error.instance)[:80]!r} is not of type {error.validator_value}" if error.validator == "type" else str(error.message)[:200]


# --- custom resources --------------------------------------------------------------------


def _read_definition(definition: Any) -> dict[str, dict[str, Any]]:
    spec = mapping(mapping(definition).get("spec"))
    kind, group = at(spec, "names/kind"), spec.get("group")
    found = {}
    for _, version in entries(spec.get("versions")):
        schema = at(version, "schema/openAPIV3Schema")
        if isinstance(schema, dict):
            found[f"{group}/{version.get('name')}/{kind}"] = _strict(schema, top=True)
    if mapping(definition).get("kind") != "CustomResourceDefinition" or not found:
        raise SpecError("what --crd names is no CustomResourceDefinition with a schema", help="kubectl get crd NAME -o json > FILE gives one")
    return found


def _strict(schema: Mapping[str, Any], *, top: bool = False) -> dict[str, Any]:
    """A structural schema as an API server with strict field validation takes it: what it does not name is refused."""
    found = {
        key: value
        for key, value in schema.items()
        if key in ("type", "enum", "required", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems")
    }
    for key in ("allOf", "anyOf", "oneOf"):
        if key in schema and not schema.get("x-kubernetes-int-or-string"):
            found[key] = [_plain(part) for part in schema[key]]
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    if "properties" in schema:
        found["properties"] = {key: _strict(value) for key, value in schema["properties"].items()}
        if top:
            found["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
        if not any(schema.get(key) for key in _OPEN):
            found["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = _strict(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        found["items"] = _strict(schema["items"])
    return found


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a schema that adds conditions and no fields."""
    return {key: value for key, value in schema.items() if not key.startswith("x-") and key != "description"}


def _inline(node: Any, seen: tuple[str, ...]) -> Any:
    if isinstance(node, list):
        return [_inline(item, seen) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        name = node["$ref"].rpartition("/")[2]
        return {} if name in seen else _inline(closure()["definitions"][name], (*seen, name))
    return {key: _inline(value, seen) for key, value in node.items()}
