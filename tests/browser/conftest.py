"""What browser tests share: one JupyterLab with the side panel, behind a base URL, for the files that take it; or one for a file alone."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from labserver import BUILT, TOKEN, close_kernels, running_lab, running_notebook, write_notebook


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """Its address, its folder, and the file that is a GPU once it is there: see `driver/pynvml.py`."""
    folder = tmp_path_factory.mktemp("jupyter")
    gpu = folder / ".gpu.json"
    driver = os.pathsep.join(filter(None, (str(Path(__file__).parents[1] / "driver"), os.environ.get("PYTHONPATH"))))
    environment = {"PYTHONPATH": driver, "STAND_IN_GPU": str(gpu)}
    settings = {"aimass-lab:panel": {"interval": 0.5}}
    with running_lab(folder, panel=BUILT.exists(), base_url="/user/a%40b/", environment=environment, **settings) as address:
        yield SimpleNamespace(address=address, folder=folder, gpu=gpu)


@pytest.fixture(scope="module")
def notebook(jupyter, request):
    """Writes a notebook called like the file of tests and gives its address; its kernel ends with the file."""

    def write(cells):
        name = f"{request.module.__name__.removeprefix('test_')}.ipynb"
        write_notebook(jupyter.folder / name, cells)
        return f"{jupyter.address}lab/tree/{name}?token={TOKEN}&reset"

    yield write
    close_kernels(jupyter.address)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the notebook of a file of tests lies that has a JupyterLab of its own."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(folder, request):
    """The address of that notebook, whose cells are the file's CELLS."""
    with running_notebook(folder, request.module.CELLS) as address:
        yield address
