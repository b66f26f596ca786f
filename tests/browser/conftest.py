"""One JupyterLab for the files that take it: with the side panel, behind a base URL; each has a notebook of its own."""

from types import SimpleNamespace

import pytest
from labserver import BUILT, TOKEN, close_kernels, running_lab, write_notebook


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """Its address and its folder."""
    folder = tmp_path_factory.mktemp("jupyter")
    with running_lab(folder, panel=BUILT.exists(), base_url="/user/a%40b/", **{"aimass-lab:panel": {"interval": 0.5}}) as address:
        yield SimpleNamespace(address=address, folder=folder)


@pytest.fixture(scope="module")
def notebook(jupyter, request):
    """Writes a notebook called like the file of tests and gives its address; its kernel ends with the file."""

    def write(cells):
        name = f"{request.module.__name__.removeprefix('test_')}.ipynb"
        write_notebook(jupyter.folder / name, cells)
        return f"{jupyter.address}lab/tree/{name}?token={TOKEN}&reset"

    yield write
    close_kernels(jupyter.address)
