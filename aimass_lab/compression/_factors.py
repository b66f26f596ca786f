"""Layers as two thinner ones: the directions in which a layer's outputs vary, and the modules that keep some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._activations import Moments, Side

DAMPING = 1e-2
"""Share of the inputs' mean square that is added to each of their directions: those that no sample showed still count a little."""


class Pair(nn.Module):
    """A layer as a product of two; it goes on showing the shape of the layer, because modules around it may read that."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, down: nn.Linear | nn.Conv2d, up: nn.Linear | nn.Conv2d, first: torch.Tensor, second: torch.Tensor) -> None:
        super().__init__()
        self.down, self.up = down, up
        for thin, values in ((down, first), (up, second)):
            fresh = values.to(layer.weight).reshape(thin.weight.shape).contiguous()
            thin.weight = nn.Parameter(fresh, requires_grad=layer.weight.requires_grad)
        self.train(layer.training)

    @property
    def weight(self) -> torch.Tensor:
        """The product of both weights."""
        return (self.up.weight.flatten(1) @ self.down.weight.flatten(1)).unflatten(1, self.down.weight.shape[1:])

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the second layer."""
        return self.up.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Both layers, one after the other."""
        return self.up(self.down(input))


class LowRankLinear(Pair):
    """`nn.Linear` by way of fewer features."""

    def __init__(self, layer: nn.Linear, first: torch.Tensor, second: torch.Tensor) -> None:
        down = nn.Linear(layer.in_features, len(first), bias=False, device="meta")
        up = nn.Linear(len(first), layer.out_features, bias=False, device="meta")
        super().__init__(layer, down, up, first, second)
        self.in_features, self.out_features = layer.in_features, layer.out_features


class LowRankConv2d(Pair):
    """`nn.Conv2d` by way of fewer channels: the same kernel into them, and from them to the outputs pixel by pixel."""

    def __init__(self, layer: nn.Conv2d, first: torch.Tensor, second: torch.Tensor) -> None:
        shape = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        down = nn.Conv2d(layer.in_channels, len(first), bias=False, device="meta", **shape)
        up = nn.Conv2d(len(first), layer.out_channels, 1, bias=False, device="meta")
        super().__init__(layer, down, up, first, second)
        self.__dict__.update(in_channels=layer.in_channels, out_channels=layer.out_channels, groups=1, **shape)


@dataclass(frozen=True)
class Directions:
    """Directions in the space of a layer's outputs, most important first."""

    basis: torch.Tensor
    """(outputs, directions), orthonormal columns, in single precision at least."""
    energies: tuple[float, ...]
    """Squared error that leaving out each costs: mean over rows of the samples, or of the weight itself."""
    mean: torch.Tensor | None
    """Mean output less the bias, where the bias can make up for what is lost of it."""
    num_rows: int
    """Rows of the samples that they come from; 0: from the weight alone."""

    def factors(self, weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (rank, inputs) and (outputs, rank) whose product keeps the first `rank` directions of `weight`.

        The second has orthonormal columns: an error made between the two, as by rounding to int8, comes out no larger.
        """
        second = self.basis[:, :rank]
        return second.T @ weight.flatten(1).to(second.dtype), second

    def lost_mean(self, rank: int) -> torch.Tensor | float:
        """What the first `rank` directions leave out of the mean output."""
        if self.mean is None:
            return 0.0
        kept = self.basis[:, :rank].double()
        return self.mean - kept @ (kept.T @ self.mean)


def side_of(layer: nn.Linear | nn.Conv2d) -> Side:
    """Where moments are needed: on the side with fewer features."""
    num_outputs, num_inputs = layer.weight.flatten(1).shape
    return "output" if num_outputs <= num_inputs else "input"


def find_directions(layer: nn.Linear | nn.Conv2d, moments: Moments | None) -> Directions:
    """Directions whose first r keep as much of the layer's output as any r can.

    With W the weight and S the mean of x xᵀ over inputs x, the rank-r matrix W' with the least E|Wx - W'x|² projects outputs on the first r
    eigenvectors of W S Wᵀ, and loses the sum of its other eigenvalues: principal components of the outputs (Eckart-Young for W S^½). That is
    the second moment of the outputs, so no input needs to be seen where outputs are fewer. Where there is a bias to take up the mean, x is
    counted from its own mean. Without moments S is the identity: plain SVD.
    """
    weight = layer.weight.detach().flatten(1).double()
    precision = torch.float64 if layer.weight.dtype is torch.float64 else torch.float32
    inputs = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
    if side_of(layer) == "output":
        gram = weight @ weight.T
        measured = gram if moments is None else _measured(layer, moments)
        if moments is not None:
            gram = measured + DAMPING * moments.second.trace() / gram.trace() * gram
        basis = torch.linalg.eigh(gram).eigenvectors.flip(1)
        energies = (basis * (measured @ basis)).sum(0)
    else:
        measured = inputs if moments is None else _measured(layer, moments)
        root = inputs
        if moments is not None:
            root = torch.linalg.cholesky(measured + DAMPING * moments.second.diagonal().mean() * inputs)
        scaled = weight @ root
        vectors = torch.linalg.eigh(scaled.T @ scaled).eigenvectors.flip(1)
        # the images of the eigenvectors are orthogonal already, those of tiny eigenvalues but for rounding
        basis = torch.linalg.qr(scaled @ vectors).Q
        seen = basis.T @ weight
        energies = (seen * (seen @ measured)).sum(1)
    mean = None
    if moments is not None and layer.bias is not None:
        mean = moments.mean if side_of(layer) == "output" else weight @ moments.mean
    return Directions(basis.to(precision), tuple(energies.clamp_min(0).tolist()), mean, moments.num_rows if moments else 0)


def hollow_directions(layer: nn.Linear | nn.Conv2d) -> Directions:
    """As many directions as there are, of no length: for products of which only the shapes count."""
    num_outputs, num_inputs = layer.weight.flatten(1).shape
    most = min(num_outputs, num_inputs)
    return Directions(torch.zeros(num_outputs, most, device=layer.weight.device), (0.0,) * most, None, 0)


def _measured(layer: nn.Linear | nn.Conv2d, moments: Moments) -> torch.Tensor:
    return moments.second if layer.bias is None else moments.covariance


def make_pair(layer: Any, directions: Directions, rank: int) -> Pair:
    """The product of `rank` that stands in the place of `layer`, a linear layer or a convolution."""
    first, second = directions.factors(layer.weight.detach(), rank)
    pair = LowRankConv2d(layer, first, second) if isinstance(layer, nn.Conv2d) else LowRankLinear(layer, first, second)
    if layer.bias is not None:
        moved = (layer.bias.detach() + directions.lost_mean(rank)).to(layer.bias)
        pair.up.bias = nn.Parameter(moved, requires_grad=layer.bias.requires_grad)
    return pair


def replace_layer(model: nn.Module, name: str, replacement: nn.Module) -> nn.Module:
    """Put `replacement` wherever the layer called `name` stands, and return the model: itself, or the replacement of a lone layer."""
    layer = model.get_submodule(name)
    if layer is model:
        return replacement
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is layer:
                parent._modules[key] = replacement
    _leave_fast_path(model, replacement)
    return model


def _leave_fast_path(model: nn.Module, replacement: nn.Module) -> None:
    """Make torch's transformer layers call their linear layers, instead of handing the weights of these to a fused kernel."""
    for parent in model.modules():
        if isinstance(parent, nn.TransformerEncoderLayer) and replacement in (parent.linear1, parent.linear2):
            parent.activation_relu_or_gelu = 0  # what the layer itself sets for any other activation
        if isinstance(parent, nn.TransformerEncoder) and any(module is replacement for module in parent.modules()):
            parent.use_nested_tensor = False
