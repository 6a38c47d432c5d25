"""Where the parameters of the tier live, in the layout in which its steps update them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from layerlab import Params


# Bytes.
_LINE = 64


@dataclass(frozen=True)
class Weights:
    """The parameters, each row without gaps, written in place.

    Attributes:
        w1_t: First layer, transposed, shape (H, D_in): the update is then a product that is written row by
            row, and all that belongs to a hidden unit lies together. On the CPU each row is whole cache
            lines: a vector that lies in two takes two loads, and the last one of a row is one as well.
        w2: Second layer, shape (H, D_out).
        b1: Biases, shape (H,), or None.
        b2: Biases, shape (D_out,), or None.
    """

    w1_t: Tensor
    w2: Tensor
    b1: Tensor | None
    b2: Tensor | None

    @classmethod
    def of(cls, params: Params, device: torch.device, dtype: torch.dtype) -> Weights:
        """Copies on a device."""

        def tensor(array: Any) -> Any:
            if array is None:
                return None
            # torch keeps the order of an array's axes in memory, whichever it is
            return torch.tensor(array, device=device, dtype=dtype).contiguous()

        w1_t = tensor(params.w1.T)
        if device.type == "cpu":
            w1_t = _in_lines(w1_t)
        return cls(w1_t, tensor(params.w2), tensor(params.b1), tensor(params.b2))

    def views(self) -> dict[str, Tensor]:
        """Those that there are, by their names and in the layout of `layerlab.Params`."""
        named = {"w1": self.w1_t.t(), "w2": self.w2, "b1": self.b1, "b2": self.b2}
        return {name: p for name, p in named.items() if p is not None}


def _in_lines(rows: Tensor) -> Tensor:
    """The same rows, each in cache lines of its own; torch's memory begins one."""
    line = _LINE // rows.element_size()
    apart = rows.new_zeros(len(rows), -(-rows.shape[1] // line) * line)
    return apart[:, : rows.shape[1]].copy_(rows)


def misfit(x: Tensor, y: Tensor, like: Tensor, sizes: tuple[tuple[int, int], tuple[int, int]]) -> ValueError:
    """What is wrong with a batch that does not fit the parameters."""
    return ValueError(
        f"{like.dtype} of shapes {sizes} on {like.device} expected, got {x.dtype} and {y.dtype}, "
        f"{tuple(x.shape)} and {tuple(y.shape)}, on {x.device} and {y.device}"
    )
