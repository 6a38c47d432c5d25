"""The contract between layerlab and an implementation of the network: `Params`, `Recipe`, `Tier`.

Nothing here imports torch: a tier may be written in anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    Array = npt.NDArray[np.floating[Any]]

Init = Literal["normal", "linear"]
Precision = Literal["32-true", "64-true", "bf16-mixed"]
# Goes up when a tier that was right before must be changed to stay so.
CONTRACT_VERSION = 1
PRECISIONS: tuple[Precision, ...] = ("32-true", "64-true", "bf16-mixed")


class Params(NamedTuple):
    """The parameters of the network in their canonical layout: NumPy arrays, always copies.

    Attributes:
        w1: Weights of the first layer, shape (n_in, n_hidden).
        w2: Weights of the second layer, shape (n_hidden, n_out).
        b1: Bias of the first layer, shape (n_hidden,), or None.
        b2: Bias of the second layer, shape (n_out,), or None.
    """

    w1: Array
    w2: Array
    b1: Array | None = None
    b2: Array | None = None

    @classmethod
    def copy_of(cls, w1: Any, w2: Any, b1: Any = None, b2: Any = None) -> Params:
        """Copies anything that NumPy can read, torch tensors on any device included."""
        return cls(w1, w2, b1, b2).map(host_copy)

    def map(self, function: Callable[[Any], Array]) -> Params:
        """Applies a function to every parameter that there is, in the order of the fields."""
        w1, w2 = function(self.w1), function(self.w2)
        b1, b2 = (None if b is None else function(b) for b in (self.b1, self.b2))
        return Params(w1, w2, b1, b2)


def host_copy(array: Any) -> Array:
    """A NumPy copy of an array or tensor, wherever it lives."""
    import numpy as np

    if hasattr(array, "detach"):  # a torch tensor, perhaps on a device, perhaps with a gradient
        array = array.detach().cpu()
        # NumPy has no such type, and float32 holds all its values
        array = (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()
    return np.array(array)


@dataclass(frozen=True)
class Recipe:
    """A tier's own defaults, used where the user says nothing.

    Attributes:
        optimizer: The rule of the update: "sgd", "adam", or a name of the tier's own.
        lr: Learning rate.
        init: First weights: "normal" (standard normal, biases 0) or "linear" (uniform in
            ±1/sqrt(fan_in), biases too, as `torch.nn.Linear` draws them).
        bias: Whether the layers have biases.
    """

    optimizer: str = "sgd"
    lr: float = 1e-4
    init: Init = "linear"
    bias: bool = True


class Tier(ABC):
    """One way of implementing and training the two-layer network.

    A tier must have `forward`, `params`, and either `step` or both of `backward` and `update`.

    Every tier computes the same thing::

        y_pred = relu(x @ w1 + b1) @ w2 + b2        with relu'(0) = 0
        loss   = sum((y_pred - y)**2)               over the batch and the outputs

    Why it is shaped so:

    - The lab makes the first parameters and the batches and hands them in, so that any two tiers can start
      from the same point and see the same data. A tier never seeds and never draws.
    - The lab logs, measures and moves data. A tier never logs, never moves data between devices and never
      waits for the device: that is what lets hundreds of steps run between two looks at the clock.
    - A step that is split in three can be proven gradient by gradient. A fused one can be faster. Both are
      full citizens.

    `backward` is always called right after `forward` on the same ``x``, so a tier may keep what `forward`
    computed on the way.

    Attributes:
        contract_version: The `CONTRACT_VERSION` that the tier was written for, as a number of its own. A tier
            that was written for another one is refused with a word on which side to upgrade.
        accelerators: Where the tier runs, of {"cpu", "gpu"}; "gpu" means CUDA or MPS.
        precisions: Which precisions it computes in, of `PRECISIONS`. "bf16-mixed" is torch's autocast: a
            tier that autocast does not reach must not claim it.
        supports_bias: Whether the layers can have biases.
        capturable: Whether on CUDA a step may be captured in a graph once and replayed from then on, which
            does again what the device did, at the same addresses, and nothing of what Python did: one launch,
            whatever is in it. So parameters, and whatever else a step leaves to the next, must be tensors
            that are updated in place, and the loss a tensor. A class says so for itself alone: what is
            derived from it may count in Python.
        recipe: The tier's own defaults.

    Args:
        params: First parameters, already in ``dtype``. They belong to the caller: copy them.
        lr: Learning rate.
        device: Where the tensors of the run live.
        dtype: What the parameters are kept in: `torch.float32` or `torch.float64`.
    """

    contract_version: ClassVar[int]
    accelerators: ClassVar[frozenset[str]] = frozenset({"cpu", "gpu"})
    precisions: ClassVar[frozenset[str]] = frozenset(PRECISIONS)
    supports_bias: ClassVar[bool] = True
    capturable: ClassVar[bool] = False
    recipe: ClassVar[Recipe]

    @abstractmethod
    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None: ...

    @abstractmethod
    def forward(self, x: torch.Tensor) -> Any:
        """Predicts.

        Args:
            x: Inputs, shape (N, n_in), on the run's device.

        Returns:
            Predictions, shape (N, n_out): a tensor, or anything that NumPy can read.
        """

    @abstractmethod
    def params(self) -> Params:
        """A copy of the parameters as they are now."""

    def backward(self, x: torch.Tensor, y_pred: Any, y: torch.Tensor) -> Any:
        """Computes the loss and leaves its gradients behind, for `update` and `gradients`.

        Args:
            x: Inputs, shape (N, n_in).
            y_pred: What `forward` just returned for ``x``, shape (N, n_out).
            y: Targets, shape (N, n_out).

        Returns:
            The loss, 0-d and still on the device: a tensor, or a number.
        """
        raise NotImplementedError

    def update(self) -> None:
        """Applies the gradients that `backward` left."""
        raise NotImplementedError

    def step(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        """Trains on one batch: `forward`, `backward`, `update`.

        Args:
            x: Inputs, shape (N, n_in).
            y: Targets, shape (N, n_out).

        Returns:
            The loss before the update, 0-d.
        """
        loss = self.backward(x, self.forward(x), y)
        self.update()
        return loss

    def gradients(self) -> Sequence[Any]:
        """The gradients that `backward` left, in the order and layout of `Params`, writable in place."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """All that a resume needs, optimizer included: tensors, arrays, numbers and None only, copied."""
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        raise NotImplementedError

    @classmethod
    def splits_step(cls) -> bool:
        """Whether the step can be taken apart into `forward`, `backward` and `update`."""
        return cls.backward is not Tier.backward and cls.update is not Tier.update

    @classmethod
    def resumable(cls) -> bool:
        """Whether the tier can be saved and gone on with."""
        return cls.state is not Tier.state and cls.load_state is not Tier.load_state

    @classmethod
    def says_capturable(cls) -> bool:
        """Whether this very class declares that it is `capturable`."""
        return bool(vars(cls).get("capturable", False))

    @classmethod
    def contract_mismatch(cls) -> tuple[str, str] | None:
        """How the contract that the class was written for differs from this one, and a hint; or None."""
        version = getattr(cls, "contract_version", None)
        if version is None or (version == CONTRACT_VERSION and version is not True):
            return None
        if not isinstance(version, int) or isinstance(version, bool):
            return (
                f"its contract_version is {version!r}, not a whole number",
                f"this one is {CONTRACT_VERSION}",
            )
        newer = version > CONTRACT_VERSION
        return (
            f"written for contract {version}, {'newer' if newer else 'older'} than {CONTRACT_VERSION}, "
            "which this layerlab has",
            "upgrade layerlab" if newer else "upgrade the plugin",
        )

    @classmethod
    def contract_fault(cls) -> str | None:
        """What keeps the class from being used as a tier, or None."""
        missing = sorted(cls.__abstractmethods__)
        if missing:
            return f"{cls.__name__} does not define {', '.join(missing)}"
        if not isinstance(getattr(cls, "recipe", None), Recipe):
            return f"{cls.__name__}.recipe is not a Recipe"
        if not cls.splits_step() and cls.step is Tier.step:
            return f"{cls.__name__} defines neither step nor both of backward and update"
        for one, other in (("backward", "update"), ("state", "load_state")):
            first, second = (getattr(cls, name) is not getattr(Tier, name) for name in (one, other))
            if first != second:
                there, lacking = (one, other) if first else (other, one)
                return f"{cls.__name__} defines {there} and not {lacking}"
        optimizer = cls.recipe.optimizer
        if not isinstance(optimizer, str) or not optimizer or optimizer != optimizer.lower():
            return f"{cls.__name__}.recipe.optimizer is {optimizer!r}, not a name in lower case"
        if cls.recipe.init not in ("normal", "linear"):
            return f"{cls.__name__}.recipe.init is {cls.recipe.init!r}, neither 'normal' nor 'linear'"
        lr = cls.recipe.lr
        if isinstance(lr, bool) or not (isinstance(lr, (int, float)) and 0 < lr < float("inf")):
            return f"{cls.__name__}.recipe.lr is {lr!r}, not a finite number above 0"
        if not isinstance(cls.recipe.bias, bool):
            return f"{cls.__name__}.recipe.bias is {cls.recipe.bias!r}, neither True nor False"
        if not isinstance(cls.capturable, bool):
            return f"{cls.__name__}.capturable is {cls.capturable!r}, neither True nor False"
        for name, known in (("accelerators", ("cpu", "gpu")), ("precisions", PRECISIONS)):
            declared = getattr(cls, name)
            if not isinstance(declared, (set, frozenset)) or not declared or not declared <= set(known):
                return f"{cls.__name__}.{name} must be some of {' and '.join(map(repr, known))}, in a set"
        return None
