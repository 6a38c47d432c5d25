"""Only the update is by hand: layers and loss are modules of `torch.nn`.

A module owns its parameters, so the update can loop over them without knowing the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from layerlab.tier import Recipe
from layerlab.tiers._plumbing import TwoLinears

if TYPE_CHECKING:
    from torch import Tensor


class NnTier(TwoLinears):
    """The network as an `nn.Sequential`, trained by `nn.MSELoss` and a loop over the parameters."""

    capturable = True
    recipe = Recipe(optimizer="sgd", lr=1e-4, init="linear", bias=True)
    # the sum over batch and outputs, not the mean
    loss_fn = nn.MSELoss(reduction="sum")

    def build(self, n_in: int, n_hidden: int, n_out: int, *, bias: bool) -> nn.Module:
        """Two linear layers with a ReLU between."""
        return nn.Sequential(
            nn.Linear(n_in, n_hidden, bias=bias),
            nn.ReLU(),
            nn.Linear(n_hidden, n_out, bias=bias),
        )

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 -- autograd remembers x
        """The loss; autograd leaves the gradients in the module's parameters."""
        self.model.zero_grad()
        loss: Tensor = self.loss_fn(y_pred, y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self) -> None:
        """Gradient descent over whatever parameters the module has."""
        with torch.no_grad():
            for p in self.model.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=self.lr)
