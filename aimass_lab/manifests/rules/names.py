"""Names and labels: what the API server refuses though the schemas take any text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ...records import Finding, ServingSpec
from ..objects import Object, Objects, at, entries, mapping
from .base import RULES

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PORT = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_KEY = re.compile(rf"(?:(?P<prefix>{_SUBDOMAIN.pattern})/)?(?P<name>[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)")
_AS_RFC1035 = {"Service"}


@RULES.register("names")
def check_names(objects: Objects, spec: ServingSpec | None) -> Iterator[Finding]:
    """Names of objects, containers, ports and volumes; keys and values of labels."""
    for item in objects.every:
        if not item.kind:
            continue
        name = at(item.document, "metadata/name")
        if isinstance(name, str):
            yield from _object(item, name)
        elif not at(item.document, "metadata/generateName"):
            yield item.finding("E-NAME", "metadata/name", "has no name")
        yield from _labels(item, at(item.document, "metadata/labels"), "metadata/labels")
        yield from _labels(item, at(item.spec, "template/metadata/labels"), "spec/template/metadata/labels")
        yield from _annotations(item)
        for index, port in entries(item.spec.get("ports")) if item.kind == "Service" else []:
            yield from _dns(item, port.get("name"), f"spec/ports/{index}/name")
            if isinstance(port.get("targetPort"), str):
                yield from _port(item, port["targetPort"], f"spec/ports/{index}/targetPort")
    for workload in objects.workloads():
        for index, volume in entries(workload.pod.get("volumes")):
            yield from _dns(workload.owner, volume.get("name"), f"{workload.path}/volumes/{index}/name")
        for path, container in workload.containers():
            yield from _dns(workload.owner, container.get("name"), f"{path}/name")
            for index, port in entries(container.get("ports")):
                if isinstance(port.get("name"), str):
                    yield from _port(workload.owner, port["name"], f"{path}/ports/{index}/name")
                number = port.get("containerPort")
                if isinstance(number, int) and not 1 <= number <= 65535:
                    yield workload.owner.finding("E-PORT", f"{path}/ports/{index}/containerPort", f"{number} is no port; ports are 1 to 65535")


def _object(item: Object, name: str) -> Iterator[Finding]:
    dotted = item.kind not in _AS_RFC1035
    if not (_SUBDOMAIN if dotted else _LABEL).fullmatch(name) or len(name) > (253 if dotted else 63):
        text = f"{name!r} is no name: lower-case letters, digits and hyphens{' and dots' if dotted else ''}, {253 if dotted else 63} at most"
        yield item.finding("E-NAME", "metadata/name", text)


def _dns(item: Object, name: Any, path: str) -> Iterator[Finding]:
    if isinstance(name, str) and not (_LABEL.fullmatch(name) and len(name) <= 63):
        yield item.finding("E-NAME", path, f"{name!r} is no DNS label: lower-case letters, digits and hyphens, 63 at most")


def _port(item: Object, name: str, path: str) -> Iterator[Finding]:
    if not _PORT.fullmatch(name) or len(name) > 15:
        text = f"{name!r} cannot name a port: 15 lower-case letters, digits and single hyphens at most, one of them a letter"
        yield item.finding("E-NAME", path, text)


def _labels(item: Object, labels: Any, path: str) -> Iterator[Finding]:
    for key, value in mapping(labels).items():
        field = f"{path}/{str(key).replace('/', '~1')}"
        yield from _key(item, str(key), field)
        if isinstance(value, str) and not (_VALUE.fullmatch(value) and len(value) <= 63):
            text = f"{value!r} cannot be a label's value: 63 letters, digits, '-', '_' and '.' at most; an annotation takes any text"
            yield item.finding("E-LABEL", field, text)


def _annotations(item: Object) -> Iterator[Finding]:
    for key, value in mapping(at(item.document, "metadata/annotations")).items():
        field = f"metadata/annotations/{str(key).replace('/', '~1')}"
        yield from _key(item, str(key), field)
        if not isinstance(value, str):
            yield item.finding("E-LABEL", field, f"{value!r} is no text; put quotes around it")


def _key(item: Object, key: str, field: str) -> Iterator[Finding]:
    match = _KEY.fullmatch(key)
    if match is None or len(match["name"]) > 63 or len(match["prefix"] or "") > 253:
        yield item.finding("E-LABEL", field, f"{key!r} cannot be a key: an optional DNS name and a slash, then 63 letters, digits, '-', '_' and '.' at most")
