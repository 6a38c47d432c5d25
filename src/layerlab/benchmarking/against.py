"""Another tier in the process of one that is measured: what it is, and what is told of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from layerlab import registry
from layerlab.errors import SpecError, TierError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerlab.registry import TierRow
    from layerlab.tier import Tier


class Against(NamedTuple):
    """A tier with whose bare loop the trainings of another take turns too.

    Attributes:
        row: The tier.
        tier_class: Its class.
        name: What it is called where something is wrong with it.
    """

    row: TierRow
    tier_class: type[Tier]
    name: str

    @classmethod
    def of(cls, selector: str) -> Against:
        """The tier of a selector.

        Raises:
            PluginError: There is none, or it cannot be loaded.
        """
        row = registry.find(selector)
        return cls(row, registry.load(row), f"{row.selector} beside it")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Whatever it raises within this context is not taken for the other's."""
        try:
            yield
        except Exception as error:
            raise TierError(f"{self.name}: {error}") from error


def chosen(selector: str, rows: Sequence[TierRow], modes: Sequence[str]) -> str:
    """The selector of the tier that others are held against.

    Args:
        selector: What was asked for.
        rows: The others.
        modes: What is measured of them.

    Raises:
        InputError: There is none of that name, or no ratio would be one of tiers.
    """
    row = registry.find(selector)
    if set(modes) == {"bare"}:
        raise SpecError(
            "against: it is trainings that take turns, and none is measured", hint="--mode tracked"
        )
    if len({_has_threads_of_its_own(one) for one in (row, *rows)}) > 1:
        raise SpecError(
            "against: NumPy's threads look out for work in the turns of torch's, on their processors",
            hint="compare the bare loops instead: layerlab bench numpy tensors",
        )
    return row.selector


def _has_threads_of_its_own(row: TierRow) -> bool:
    return row.builtin and row.name == "numpy"
