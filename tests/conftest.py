"""What every test shares: its own history, and a model file outside the repository."""

import textwrap

import pytest


@pytest.fixture(autouse=True)
def own_history(tmp_path, monkeypatch):
    """No test reads or writes the history of the person who runs it."""
    path = tmp_path / "history.db"
    monkeypatch.setenv("AIMASS_STORE", str(path))
    return path


MODEL_FILE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    def make():
        torch.manual_seed(0)
        return Net(), torch.randn(4, 8)

    def judged():
        from aimass_lab import Workload
        model, x = make()
        labels = model(x).argmax(1)
        return Workload(model, x, data=(x, labels), metric=lambda out, y: (out.argmax(1) == y).float().mean().item(), name="judged")

    def broken():
        raise KeyError("weights.pt")

    def wrong():
        return make()[0]

    number = 3
"""


@pytest.fixture
def model_file(tmp_path_factory):
    """A file with factories, where no part of ours is."""
    path = tmp_path_factory.mktemp("elsewhere") / "net.py"
    path.write_text(textwrap.dedent(MODEL_FILE))
    return path
