"""Alert rules: expressions that cannot be read, and metrics that the server does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ...records import Finding, ServingSpec
from ..objects import Object, Objects, entries, mapping
from ..server import METRIC_NAMES
from .base import RULES

_OPEN, _CLOSE = "([{", ")]}"
_DURATION = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")
_OURS = re.compile(r"\baimass_\w+")
_ENDINGS = ("_bucket", "_sum", "_count", "_total", "_created")


@RULES.register("alerts")
def check_alerts(objects: Objects, spec: ServingSpec | None) -> Iterator[Finding]:
    """Every rule of a PrometheusRule, or of a file for Prometheus itself."""
    for item in objects.every:
        if item.kind == "PrometheusRule":
            yield from _groups(item, item.spec.get("groups"), "spec/groups")
        elif not item.kind and "groups" in item.document:
            yield from _groups(item, item.document["groups"], "groups")
    for item in objects.of_kind("ScaledObject"):
        for index, trigger in entries(item.spec.get("triggers")):
            query = mapping(trigger.get("metadata")).get("query")
            if isinstance(query, str):
                yield from _expression(item, query, f"spec/triggers/{index}/metadata/query")


def _groups(item: Object, groups: Any, path: str) -> Iterator[Finding]:
    for g, group in entries(groups):
        for r, rule in entries(group.get("rules")):
            field = f"{path}/{g}/rules/{r}"
            if bool(rule.get("alert")) == bool(rule.get("record")):
                yield item.finding("E-RULE", field, "needs one of alert and record")
            if "for" in rule and not _DURATION.fullmatch(str(rule["for"])):
                yield item.finding("E-DURATION", f"{field}/for", f"{rule['for']!r} is no duration; write 5m")
            if not isinstance(rule.get("expr"), str):
                yield item.finding("E-EXPRESSION", field, "has no expression; write it in expr")
            else:
                yield from _expression(item, rule["expr"], f"{field}/expr")


def _expression(item: Object, text: str, path: str) -> Iterator[Finding]:
    wrong = _unbalanced(text)
    if wrong:
        yield item.finding("E-EXPRESSION", path, f"cannot be read: {wrong}")
    for name in sorted(set(_OURS.findall(re.sub(r'"[^"]*"', "", text)))):
        bare = next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)
        if bare not in METRIC_NAMES:
            yield item.finding("E-METRIC", path, f"the server has no metric {name}; it has {', '.join(sorted(METRIC_NAMES))}")


def _unbalanced(text: str) -> str | None:
    waiting: list[str] = []
    quote = ""
    for before, character in zip(" " + text, text, strict=False):
        if quote:
            quote = "" if character == quote and before != "\\" else quote
        elif character in "\"'`":
            quote = character
        elif character == "[" and waiting[-1:] == ["{"]:
            return "a range '[' inside of the labels '{'"
        elif character in _OPEN:
            waiting.append(character)
        elif character in _CLOSE and (not waiting or waiting.pop() != _OPEN[_CLOSE.index(character)]):
            return f"{character!r} closes nothing"
    if quote:
        return f"a quote {quote} is not closed"
    return f"{waiting[-1]!r} is not closed" if waiting else None
