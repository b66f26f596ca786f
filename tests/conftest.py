"""What every test shares: its own history, and a model file outside the repository."""

import textwrap

import pytest
from model_file import MODEL_FILE


@pytest.fixture(autouse=True)
def own_history(tmp_path, monkeypatch):
    """No test reads or writes the history of the person who runs it."""
    path = tmp_path / "history.db"
    monkeypatch.setenv("AIMASS_STORE", str(path))
    return path


@pytest.fixture
def model_file(tmp_path_factory):
    """A file with factories, where no part of ours is."""
    path = tmp_path_factory.mktemp("elsewhere") / "net.py"
    path.write_text(textwrap.dedent(MODEL_FILE))
    return path
