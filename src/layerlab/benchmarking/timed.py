"""A training that is timed: its batches come by way of its turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerlab.training import TierModule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerlab.benchmarking.turns import Turns


class TimedModule(TierModule):
    """A training whose sink is a `Turns`."""

    _sink: Turns

    def setup(self, stage: str) -> None:
        """Puts the turns before the batches."""
        super().setup(stage)
        block, turns = self.batches.block, self._sink

        def in_turns(steps: range) -> Iterable[tuple[Any, Any]]:
            return turns.batches(block(steps), len(steps))

        self.batches.block = in_turns  # type: ignore[method-assign]  # of this one alone

    def again(self, x: Any, y: Any) -> Any:
        """One more step, in the way in which all of them were made; its loss."""
        return self._steps.run(range(1), [(x, y)])[0]

    def block_end(self, step: int) -> int:
        """A block ends where the first part does."""
        end, first = super().block_end(step), self._sink.few
        return min(end, first) if step < first else end

    def training_step(self, batch: slice, batch_idx: int) -> None:
        """A block is as long as it would be if nobody else had a turn in it."""
        super().training_step(batch, batch_idx)
        self.seconds_per_step -= self._sink.within / (batch.stop - batch.start)
