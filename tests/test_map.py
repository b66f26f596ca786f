"""The architecture: arrows point down, importing is light, the map in the README is the tree."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aimass_lab"

FLOORS = {
    0: {"records", "errors", "interrupts", "registry", "units"},
    1: {
        "baseline", "bundle", "comparison", "compiled", "compression", "demand", "devices", "dynamic_shapes", "environment", "export", "finetuning", "fleet",
        "fast_path", "formats", "headlines", "jobs", "manifests", "monitoring",
        "inputs", "network", "options", "outputs",
        "places", "planning", "prediction", "preserve", "profiling", "quiet", "readings", "recipe", "samplers", "scaling", "scheduling", "schemas",
        "searching", "spec", "storage", "targets", "timing", "tracing", "workload",
    },
    2: {"rotation", "trial"},
    3: {"study", "rehearsal", "store", "operations", "verbs", "serving", "wire"},
    4: {"frontends"},
    5: {"__init__", "__main__"},
}  # fmt: skip
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
NO_TORCH = {
    "records", "errors", "interrupts", "registry", "units", "compiled", "devices", "dynamic_shapes", "export", "fleet", "headlines", "jobs",
    "manifests", "monitoring", "network", "options", "places", "planning", "readings", "recipe", "samplers", "scaling", "scheduling", "searching", "spec",
    "store", "verbs", "frontends", "serving",
}  # fmt: skip


def rooms_and_files():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        yield (parts[0] if len(parts) > 1 else path.stem), path


def imports(path, *, top_level_only=False):
    """Dotted names that a file imports, ours as ``aimass_lab.x``; imports for type checkers left out."""
    package = ["aimass_lab", *path.relative_to(PACKAGE).parts[:-1]]
    tree = ast.parse(path.read_text())
    skipped = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) for n in ast.walk(node)}
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            dotted = ".".join([*base, *([node.module] if node.module else [])])
            yield from ([f"{dotted}.{alias.name}" for alias in node.names] if dotted == "aimass_lab" else [dotted])


def test_every_room_has_a_floor():
    assert {room for room, _ in rooms_and_files()} == set(FLOOR_OF)


@pytest.mark.parametrize(("room", "path"), [pytest.param(r, p, id=str(p.relative_to(PACKAGE))) for r, p in rooms_and_files() if r in FLOOR_OF])
def test_arrows_point_down(room, path):
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("aimass_lab.")}
    upward = {other for other in ours if other in FLOOR_OF and FLOOR_OF[other] > FLOOR_OF[room]}
    if FLOOR_OF[room] < 5:
        assert not upward, f"{room} (floor {FLOOR_OF[room]}) imports from above: {upward}"
    if room == "serving":
        assert ours <= {"serving"}, "the runtime is copied into bundles and must stand alone"


def test_rooms_form_no_circle():
    """Any file can be read after those it imports, also within a floor and inside its functions."""
    arrows = {}
    for room, path in rooms_and_files():
        arrows.setdefault(room, set()).update(n.split(".")[1] for n in imports(path) if n.startswith("aimass_lab.") and n.split(".")[1] in FLOOR_OF)
    read = set()
    while ready := {room for room, others in arrows.items() if room not in read and others - {room} <= read}:
        read |= ready
    assert not set(arrows) - read - {"__init__", "__main__"}


@pytest.mark.parametrize(("room", "path"), [pytest.param(r, p, id=str(p.relative_to(PACKAGE))) for r, p in rooms_and_files() if r in NO_TORCH])
def test_rooms_without_torch_do_not_load_it_when_imported(room, path):
    assert not [name for name in imports(path, top_level_only=True) if name.split(".")[0] in ("torch", "torchao", "transformers", "pandas", "plotly")]


def loaded_by(code):
    script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {
    "torch", "torchao", "plotly", "pandas", "numpy", "scipy", "onnx", "onnxruntime", "pynvml", "grpc", "uvicorn", "transformers", "sklearn", "optuna",
    "cmaes", "torch_pruning", "sqlalchemy", "numba", "highspy",
}  # fmt: skip


def test_importing_the_package_is_light():
    loaded = loaded_by("import aimass_lab")
    assert "aimass_lab" in loaded
    assert not loaded & HEAVY


def test_loading_the_extension_is_light():
    loaded = loaded_by("from IPython.core.interactiveshell import InteractiveShell as S\nS.instance().run_line_magic('load_ext', 'aimass_lab')")
    assert "aimass_lab" in loaded
    assert not loaded & HEAVY


def test_help_on_the_command_line_is_light():
    loaded = loaded_by("from aimass_lab.frontends.cli import main\nmain(['plan', '--help'])")
    assert not loaded & HEAVY


def test_help_in_a_notebook_is_light():
    run = "shell.run_cell('%aimass plan --help'); shell.run_cell('%aimass demand model --help')"
    loaded = loaded_by(f"from IPython.core.interactiveshell import InteractiveShell as S\nshell = S.instance()\nshell.run_cell('%load_ext aimass_lab')\n{run}")
    assert "aimass_lab" in loaded
    assert not loaded & HEAVY


def test_public_names_are_listed_and_importable():
    import aimass_lab

    assert sorted(aimass_lab.__all__) == aimass_lab.__all__
    assert all(getattr(aimass_lab, name) is not None for name in aimass_lab.__all__)


def test_every_file_opens_with_a_sentence():
    for _, path in rooms_and_files():
        doc = ast.get_docstring(ast.parse(path.read_text()))
        if path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            continue
        assert doc, f"{path} has no docstring"
        assert doc.split("\n\n")[0].rstrip().endswith((".", ":", "::")), f"{path}: its first sentence has no end"
