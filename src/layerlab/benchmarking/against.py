"""Another tier in the process of one that is measured: what it is, and what is told of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from layerlab import registry
from layerlab.errors import LayerlabError, SpecError, TierError

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


@contextmanager
def named(name: str) -> Iterator[None]:
    """Whatever is raised within this context has the name of somebody who is not measured.

    Raises:
        TierError: As said.
    """
    try:
        yield
    except LayerlabError as error:
        raise TierError(f"{name}: {error}") from error
    except Exception as error:
        raise TierError(f"{name}: {type(error).__name__}: {error}") from error


def chosen(selector: str, rows: Sequence[TierRow], modes: Sequence[str], accelerator: str) -> TierRow:
    """The tier that others are held against.

    Args:
        selector: What was asked for.
        rows: The others.
        modes: What is measured of them.
        accelerator: Where they run.

    Raises:
        InputError: There is none of that name, or nobody could be held against it.
    """
    row = registry.find(selector)
    if set(modes) == {"bare"}:
        raise SpecError(
            "against: it is trainings that take turns, and none is measured", hint="--mode tracked"
        )
    if not any(other_of(one, row, accelerator) for one in rows):
        raise SpecError(
            f"against: the threads of numpy and those of {_names([row, *rows])} may look out for work in "
            "each other's turns",
            hint="compare their bare loops, which have no turns: layerlab bench numpy tensors",
        )
    return row


def other_of(row: TierRow, against: TierRow | None, accelerator: str) -> str | None:
    """The selector of the tier that another is held against; None: there is none, or no fair one.

    The threads of one library may look out for more work on the processors on which those of the other are to
    compute in the next turn; for how long is the libraries' and the user's to say.
    """
    if against is None:
        return None
    fair = accelerator == "gpu" or _is_numpy(row) == _is_numpy(against)
    return against.selector if fair else None


def _is_numpy(row: TierRow) -> bool:
    return row.builtin and row.name == "numpy"


def _names(rows: Sequence[TierRow]) -> str:
    return ", ".join(dict.fromkeys(row.selector for row in rows if not _is_numpy(row)))
