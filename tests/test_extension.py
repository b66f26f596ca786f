"""The two halves of the package: one version, one set of record types, and a panel that can be built."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aimass_lab import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXTENSION = Path(__file__).parents[1] / "extension"
BUILT = Path(__file__).parents[1] / "aimass_lab" / "labextension"


def test_both_halves_have_one_version():
    assert json.loads((EXTENSION / "package.json").read_text())["version"] == __version__


@pytest.mark.skipif(not BUILT.exists(), reason="the panel was not built: there is no Node.js here")
def test_what_was_built_is_this_version_and_complete():
    built = json.loads((BUILT / "package.json").read_text())
    assert built["version"] == __version__
    assert (BUILT / built["jupyterlab"]["_build"]["load"]).is_file()
    assert (BUILT / "schemas" / "aimass-lab" / "panel.json").is_file()


def test_every_command_of_the_menus_is_one_that_the_panel_adds():
    schema = json.loads((EXTENSION / "schema" / "panel.json").read_text())
    commands = (EXTENSION / "src" / "commands.ts").read_text()
    entries = [*schema["jupyter.lab.toolbars"]["Cell"], *schema["jupyter.lab.menus"]["context"], *schema["jupyter.lab.shortcuts"]]
    entries += [item for menu in schema["jupyter.lab.menus"]["main"] for item in menu["items"] if "command" in item]
    assert len(entries) >= 6
    assert all(f"'{entry['command']}'" in commands for entry in entries)
    for name, setting in schema["properties"].items():
        assert {"title", "description", "default"} <= set(setting), name


@pytest.mark.skipif(shutil.which("node") is None or not (EXTENSION / "node_modules").exists(), reason="the panel's tools are not installed: no Node.js")
def test_the_panels_own_tests_pass_and_its_types_fit_the_published_schemas():
    for command in (["node_modules/.bin/tsc", "-p", "tsconfig.test.json"], ["node", "--test", ".test/__tests__"], ["node", "tools/records.mjs", "--check"]):
        done = subprocess.run(command, cwd=EXTENSION, capture_output=True, text=True, check=False, timeout=280)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_it_can_be_found_as_an_extension_of_jupyterlab():
    """By classifiers on PyPI, and by JupyterLab's own list of extensions, which says how its server's half is installed."""
    project = tomllib.loads((EXTENSION.parent / "pyproject.toml").read_text())["project"]
    endings = ("", " :: 4", " :: Extensions", " :: Extensions :: Prebuilt")
    assert {f"Framework :: Jupyter :: JupyterLab{ending}" for ending in endings} <= set(project["classifiers"])
    package = json.loads((EXTENSION / "package.json").read_text())
    assert "jupyterlab-extension" in package["keywords"]
    assert package["jupyterlab"]["discovery"]["server"] == {"managers": ["pip"], "base": {"name": project["name"]}}
    assert json.loads((EXTENSION / "install.json").read_text())["packageName"] == project["name"]


def test_every_colour_is_one_of_the_theme():
    literal = re.compile(r"#[0-9a-f]{3,8}\b|\b(?:rgb|hsl|hwb|lab|lch|oklab|oklch)a?\(|\b(?:white|black|gr[ae]y|red|green|blue|orange|yellow)\b", re.IGNORECASE)
    for path in (EXTENSION / "style").glob("*.css"):
        rules = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        values = [re.sub(r"var\(--[\w-]+", "", value) for value in re.findall(r"[\w-]+\s*:\s*([^;{}]+);", rules)]
        assert [value for value in values if literal.search(value)] == [], path.name
