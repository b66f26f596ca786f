"""A model file as a user writes it: what the command line and the magics are given."""

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

    def studied():
        from pathlib import Path
        from aimass_lab import Study
        model, x = make()
        data = x, model(x).argmax(1)
        own = Path(__file__).with_name("own.db")
        return Study(model, x, data=data, metric=lambda out, y: (out.argmax(1) == y).float().mean().item(), train=data, name="studied", store=own)

    def broken():
        raise KeyError("weights.pt")

    def wrong():
        return make()[0]

    number = 3
"""
