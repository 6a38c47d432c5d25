"""Which rows each step and each prediction sees, and how they come to the device."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlab.seeding import generator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

# No block is longer: each of its losses has a place in a tensor that is made once.
LONGEST_BLOCK = 10_000
# The rows of a block of minibatches are gathered at once, up to this many bytes.
GATHER_BYTES = 2**25
# Rows that are predicted at once outside training.
PREDICT_ROWS = 8192


class Batches:
    """The training data, and which rows each step sees.

    The order of an epoch is a permutation drawn from (seed, epoch): a run that goes on from any step sees the
    batches that it would have seen. A full batch keeps the rows as they are.

    Args:
        x: Inputs, shape (N, n_in).
        y: Targets, shape (N, n_out).
        batch_size: Rows a step; the last step of an epoch takes what is left.
        seed: The seed of the run.
        device: Where the batches are wanted; None: where the data is.
    """

    def __init__(
        self, x: Tensor, y: Tensor, *, batch_size: int, seed: int, device: torch.device | None = None
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.device = x.device if device is None else device
        self.steps_per_epoch = math.ceil(len(x) / batch_size)
        if self.steps_per_epoch == 1:
            x, y = x.to(self.device), y.to(self.device)
        self.x, self.y = x, y
        row_bytes = x[:1].nbytes + y[:1].nbytes
        self.most_steps = (
            max(1, GATHER_BYTES // (batch_size * row_bytes)) if self.steps_per_epoch > 1 else LONGEST_BLOCK
        )
        self._epoch = -1
        self._order = np.arange(0)

    def block(self, steps: range) -> Iterable[tuple[Tensor, Tensor]]:
        """The batch of every step: inputs (B, n_in) and targets (B, n_out), contiguous."""
        if self.steps_per_epoch == 1:
            return itertools.repeat((self.x, self.y), len(steps))
        chosen = [self._rows(step) for step in steps]
        index = torch.from_numpy(np.concatenate(chosen)).to(self.x.device)
        sizes = [len(rows) for rows in chosen]
        x, y = (t.index_select(0, index).to(self.device) for t in (self.x, self.y))
        return zip(torch.split(x, sizes), torch.split(y, sizes), strict=True)

    def _rows(self, step: int) -> Any:
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            del self._order  # of a large table two of them are much
            self._order = generator(self.seed, "order", epoch).permutation(len(self.x))
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]


@dataclass(frozen=True)
class Slices:
    """Rows from 0 on, as slices; not a list, which Lightning would take for several loaders."""

    rows: int

    def __len__(self) -> int:
        return math.ceil(self.rows / PREDICT_ROWS)

    def __iter__(self) -> Iterator[slice]:
        return (
            slice(start, min(start + PREDICT_ROWS, self.rows)) for start in range(0, self.rows, PREDICT_ROWS)
        )
