"""Builds the JupyterLab panel together with the Python package, and puts it where JupyterLab looks for it.

A wheel needs the panel, so building one stops without Node.js, with what to do. An editable install goes on without:
everything but the panel works, and `make` says what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE_AT_LEAST = 20
WITHOUT = "AIMASS_WITHOUT_PANEL"
SHARE = "share/jupyter/labextensions/aimass-lab"
SOURCES = ("package.json", "yarn.lock", "tsconfig.json", "src", "style", "schema")


class PanelHook(BuildHookInterface):
    """Runs before the files of a wheel or an sdist are collected."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what is missing or older than its sources, and name the files that go beside the package.

        Raises:
            RuntimeError: the panel is needed and cannot be built.
        """
        extension, built = Path(self.root) / "extension", Path(self.root) / "aimass_lab" / "labextension"
        if is_stale(extension, built) and not os.environ.get(WITHOUT):
            try:
                build(extension)
            except RuntimeError as error:
                if version != "editable":
                    raise
                self.app.display_warning(f"The JupyterLab panel is left out: {error}")
        if self.target_name == "wheel":
            build_data["shared_data"]["extension/jupyter-config/aimass_lab.json"] = "etc/jupyter/jupyter_server_config.d/aimass_lab.json"
            if not is_stale(extension, built):
                build_data["shared_data"]["aimass_lab/labextension"] = SHARE
                build_data["shared_data"]["extension/install.json"] = f"{SHARE}/install.json"


def is_stale(extension: Path, built: Path) -> bool:
    """Whether the built panel is missing, or older than a file that it was made from."""
    made = built / "package.json"
    if not made.is_file():
        return True
    files = [path for name in SOURCES for path in [extension / name, *(extension / name).rglob("*")] if path.is_file()]
    return max(path.stat().st_mtime for path in files) > made.stat().st_mtime


def build(extension: Path) -> None:
    """Install what the lock file names, and build the panel.

    Raises:
        RuntimeError: there is no suitable Node.js, or it failed; with what to do.
    """
    remedy = f"install Node.js {NODE_AT_LEAST} or newer, or set {WITHOUT}=1 to go without the panel"
    node, jlpm = shutil.which("node"), shutil.which("jlpm")
    if node is None:
        raise RuntimeError(f"building it needs Node.js, and there is none here; {remedy}")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    found = re.match(r"v(\d+)\.", said)
    if found is None or int(found[1]) < NODE_AT_LEAST:
        raise RuntimeError(f"building it needs Node.js {NODE_AT_LEAST} or newer, and {node} is {said or 'something else'}; {remedy}")
    if jlpm is None:
        raise RuntimeError("building it needs jlpm, which comes with jupyter-builder: pip install jupyter-builder")
    for command in ([jlpm, "install", "--immutable"], [jlpm, "build:prod"]):
        done = subprocess.run(command, cwd=extension, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"'{' '.join(['jlpm', *command[1:]])}' failed in {extension}:\n{done.stdout[-3000:]}")
