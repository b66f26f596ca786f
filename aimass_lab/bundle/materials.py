"""What a bundle consists of besides its own texts: every package that it needs and its model, with versions, licences and hashes (CycloneDX)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

SPECIFICATION = "1.6"
"""Of CycloneDX, https://cyclonedx.org/docs/1.6/json/"""
LONGEST_NAME = 80
"""Some packages put the text of a licence where its name belongs."""
UNKNOWN = "not stated by the package"


def licence_of(name: str) -> str | None:
    """How the installed package states its licence: an SPDX expression, or the names that it gives; None where it gives none."""
    found = metadata.metadata(name)
    if "License-Expression" in found:
        return str(found["License-Expression"])
    classifiers = [text.rpartition(" :: ")[2] for text in found.get_all("Classifier") or () if text.startswith("License ::")]
    stated = found["License"].strip() if "License" in found else ""
    return ", ".join(classifiers) or (stated if 0 < len(stated) <= LONGEST_NAME and "\n" not in stated else None)


def is_expression(name: str) -> bool:
    """Whether a package states its licence as an SPDX expression."""
    return "License-Expression" in metadata.metadata(name)


def bill_of_materials(name: str, version: str, requirements: Sequence[str], extras: Sequence[str], model: Mapping[str, str]) -> dict[str, Any]:
    """The bill as CycloneDX has it in JSON.

    Args:
        name: Of the bundle.
        version: Of the bundle.
        requirements: ``name==version`` of every package, all of them installed here.
        extras: Likewise, of those that only some ways of running it need.
        model: ``sha256:<hex>`` of the model's files, by where they lie in the bundle.
    """
    components = [_package(line, "required") for line in requirements] + [_package(line, "optional") for line in extras]
    digests = {place: digest.removeprefix("sha256:") for place, digest in model.items()}
    components += [
        {"type": "machine-learning-model", "bom-ref": place, "name": name, "version": version, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for place, digest in digests.items()
    ]
    identity = " ".join([name, version, *digests.values(), *requirements, *extras])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",  # the same for the same parts
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": "bundle", "name": name, "version": version}},
        "components": components,
        "dependencies": [{"ref": "bundle", "dependsOn": sorted(component["bom-ref"] for component in components)}],
    }


def _package(requirement: str, scope: str) -> dict[str, Any]:
    name, _, version = requirement.partition("==")
    url = f"pkg:pypi/{name}@{version}"
    component: dict[str, Any] = {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url, "scope": scope}
    licence = licence_of(name)
    if licence is not None:
        component["licenses"] = [{"expression": licence}] if is_expression(name) else [{"license": {"name": licence}}]
    return component


def licence_list(requirements: Mapping[str, Sequence[str]]) -> str:
    """The same as tables for people: of each file of requirements, the packages that it adds."""
    text = "# Licences of what this bundle needs\n\nAs each package states it; the model's own licence is its maker's to state.\n"
    for file, lines in requirements.items():
        rows = [f"| {name} | {version} | {licence_of(name) or UNKNOWN} |" for name, _, version in (line.partition("==") for line in lines)]
        text += f"\n## {file}\n\n| package | version | licence |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
    return text
