"""What every torch tier needs and none of them teaches: weights in and out, in the canonical layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from layerlab.tier import Params, Tier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn


class LooseTensors(Tier):
    """A tier whose parameters are loose tensors: ``w1``, ``w2`` and, with biases, ``b1``, ``b2``."""

    contract_version = 1
    # Whether autograd should follow the parameters.
    requires_grad = False

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:
        def tensor(array: Any) -> Tensor:
            return torch.tensor(array, device=device, dtype=dtype, requires_grad=self.requires_grad)

        self.lr = lr
        self.w1 = tensor(params.w1)  # (D_in, H)
        self.w2 = tensor(params.w2)  # (H, D_out)
        self.b1 = None if params.b1 is None else tensor(params.b1)  # (H,)
        self.b2 = None if params.b2 is None else tensor(params.b2)  # (D_out,)

    def parameters(self) -> list[Tensor]:
        """The parameters that there are, in the order of `Params`."""
        return [p for p in (self.w1, self.w2, self.b1, self.b2) if p is not None]

    def params(self) -> Params:
        """A copy of the parameters as they are now."""
        return Params.copy_of(self.w1, self.w2, self.b1, self.b2)

    def gradients(self) -> Sequence[Tensor]:
        """The gradients that autograd left, in the order of `Params`."""
        return [p.grad for p in self.parameters() if p.grad is not None]

    def state(self) -> dict[str, Any]:
        """The parameters: plain gradient descent remembers nothing else."""
        names = (name for name in Params._fields if getattr(self, name) is not None)
        return {name: getattr(self, name).detach().clone() for name in names}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        with torch.no_grad():
            for name, value in state.items():
                getattr(self, name).copy_(value)


class TwoLinears(Tier):
    """A tier whose parameters live in a module with two `torch.nn.Linear`, made by `build`.

    `torch.nn.Linear` keeps its weight as (n_out, n_in), the transpose of the canonical layout.
    """

    contract_version = 1
    model: nn.Module

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:
        self.lr = lr
        n_in, n_hidden = params.w1.shape
        # On the meta device nothing is drawn: torch's global generator stays where it was.
        with torch.device("meta"):
            model = self.build(n_in, n_hidden, params.w2.shape[1], bias=params.b1 is not None)
        self.model = model.to(dtype).to_empty(device=device)
        with torch.no_grad():
            for target, array in zip(self.canonical(), (p for p in params if p is not None), strict=True):
                target.copy_(torch.as_tensor(array))

    def build(self, n_in: int, n_hidden: int, n_out: int, *, bias: bool) -> nn.Module:
        """Makes the module, on the meta device; the weights of the run are written into it."""
        raise NotImplementedError

    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """The two layers, first to last."""
        first, second = (m for m in self.model.modules() if isinstance(m, torch.nn.Linear))
        return first, second

    def canonical(self) -> list[Tensor]:
        """Views of the parameters that there are, in the order and layout of `Params`."""
        first, second = self.linears()
        biases = [layer.bias for layer in (first, second) if layer.bias is not None]
        return [first.weight.t(), second.weight.t(), *biases]

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (N, D_out)."""
        y_pred: Tensor = self.model(x)
        return y_pred

    def params(self) -> Params:
        """A copy of the parameters as they are now."""
        return Params.copy_of(*self.canonical())

    def gradients(self) -> Sequence[Tensor]:
        """The gradients that autograd left, as views in the order and layout of `Params`."""
        first, second = self.linears()
        weights = [layer.weight.grad.t() for layer in (first, second) if layer.weight.grad is not None]
        biases = [layer.bias.grad for layer in (first, second) if layer.bias is not None]
        return [*weights, *(b for b in biases if b is not None)]

    def state(self) -> dict[str, Any]:
        """The parameters, by the module's own names."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self.model.load_state_dict(dict(state))


class WithOptimizer(TwoLinears):
    """A tier of two linears whose update is a `torch.optim.Optimizer`, made by `build_optimizer`."""

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(params, lr=lr, device=device, dtype=dtype)
        self.optimizer = self.build_optimizer()

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Makes the optimizer over the module's parameters."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """The parameters, and all that the optimizer remembers."""
        return {"model": super().state(), "optimizer": _copied(self.optimizer.state_dict()["state"])}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        super().load_state(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        # Torch keeps the very tensors that it is given, and goes on to write into them.
        self.optimizer.load_state_dict({"state": _copied(state["optimizer"]), "param_groups": groups})


def _copied(slots: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """What an optimizer remembers of each parameter, copied."""
    return {
        index: {name: value.clone() if torch.is_tensor(value) else value for name, value in slot.items()}
        for index, slot in slots.items()
    }
