"""Renders the charts that we write: values put in place of ``{{ .Values.NAME }}``, as Helm does, and nothing more of its language."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import SpecError

_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_VALUE = re.compile(r"\s*\.Values\.(\w+)(?P<quote>\s*\|\s*quote)?\s*")
BRACES = '{{ "{{" }}'
"""What stands for two opening braces in a template."""


def render(template: str, values: Mapping[str, Any], where: str) -> str:
    """Put values into a template.

    Raises:
        SpecError: it uses more of Helm's language than our charts do, or a value that is not there.
    """

    def put(match: re.Match[str]) -> str:
        if match[1].strip() == '"{{"':
            return "{{"
        value = _VALUE.fullmatch(match[1])
        if value is None:
            raise SpecError(f"{where} has {match[0]!r}, which only Helm understands", help="render it with helm template, and check what comes out")
        if value[1] not in values:
            raise SpecError(f"{where} wants the value {value[1]!r}, which values.yaml does not give")
        found = values[value[1]]
        return json.dumps(str(found)) if value["quote"] else str(found)

    return _ACTION.sub(put, template)
