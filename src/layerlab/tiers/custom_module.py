"""Nothing is by hand but the network's own class: `DoubleLayerNet` is an `nn.Module` with two named layers.

`nn.Sequential` is a list of layers. A class of one's own can have any control flow in its ``forward``, names
for its parts, and is what most code in the field looks like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from layerlab.tier import Recipe
from layerlab.tiers._plumbing import WithOptimizer

if TYPE_CHECKING:
    from torch import Tensor


class DoubleLayerNet(nn.Module):
    """The two-layer network ``relu(x @ w1 + b1) @ w2 + b2``.

    Args:
        n_in: Number of inputs.
        n_hidden: Number of hidden units.
        n_out: Number of outputs.
        bias: Whether the layers have biases.
    """

    def __init__(self, n_in: int, n_hidden: int, n_out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.linear1 = nn.Linear(n_in, n_hidden, bias=bias)
        self.linear2 = nn.Linear(n_hidden, n_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (N, n_out), for inputs of shape (N, n_in)."""
        h_relu = self.linear1(x).relu()  # (N, H)
        y_pred: Tensor = self.linear2(h_relu)  # (N, D_out)
        return y_pred


class CustomModuleTier(WithOptimizer):
    """`DoubleLayerNet` under `torch.optim.SGD`."""

    capturable = True
    recipe = Recipe(optimizer="sgd", lr=1e-4, init="linear", bias=True)
    loss_fn = nn.MSELoss(reduction="sum")

    def build(self, n_in: int, n_hidden: int, n_out: int, *, bias: bool) -> nn.Module:
        """The network."""
        return DoubleLayerNet(n_in, n_hidden, n_out, bias=bias)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Plain gradient descent, no momentum."""
        return torch.optim.SGD(self.model.parameters(), lr=self.lr)

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 -- autograd remembers x
        """The loss; autograd leaves the gradients in the module's parameters."""
        self.optimizer.zero_grad()
        loss: Tensor = self.loss_fn(y_pred, y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self) -> None:
        """One step of the optimizer over the gradients that `backward` left."""
        self.optimizer.step()
