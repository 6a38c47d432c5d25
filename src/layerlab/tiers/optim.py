"""Nothing is by hand but the loop: as `nn`, with `torch.optim.Adam` doing the update.

An optimizer owns the rule of the update and what it must remember: Adam keeps two running means for every
parameter (Kingma and Ba, https://arxiv.org/abs/1412.6980) and gives each parameter a step size of its own.
Written as tensor operations that rule is seven passes over memory; who owns all of it can make it one.
"""

from __future__ import annotations

import torch

from layerlab.tier import Recipe
from layerlab.tiers._plumbing import WithOptimizer
from layerlab.tiers.nn import NnTier


class OptimTier(WithOptimizer, NnTier):
    """As `NnTier`, updated by Adam."""

    recipe = Recipe(optimizer="adam", lr=1e-4, init="linear", bias=True)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with torch's defaults but for the learning rate, and each update in one kernel."""
        return torch.optim.Adam(self.model.parameters(), lr=self.lr, fused=True)

    def update(self) -> None:
        """One step of the optimizer over the gradients that `backward` left."""
        self.optimizer.step()
