"""Every error that layerlab raises on purpose.

LayerlabError                 one line and a hint; anything else keeps its traceback
├── InputError                what was asked for cannot be done: nothing was run or written
│   ├── SpecError             a key, a value or a flag
│   ├── DataError             a table, a column, a row
│   ├── PluginError           an unknown, ambiguous or broken tier
│   │   └── ContractError     a tier that was written for another version of the contract
│   ├── AcceleratorError      a device or a precision that is not there
│   ├── CheckpointError       a checkpoint that cannot be gone on from
│   └── TrackingError         a store that cannot be reached or written at the start
├── RunError                  it was tried and did not work
│   ├── DivergedError         a loss that is no longer a finite number
│   ├── TierError             a tier that raised, or broke the contract
│   ├── JournalError          a record that cannot be written down
│   └── ModelError            an ONNX file that fails a check
└── Interrupted               SIGINT or SIGTERM
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Characters of a name that may be what somebody meant, and names that are listed where none may be.
_LONGEST_COMPARED, _MOST_NAMED = 100, 30


class LayerlabError(Exception):
    """Base of the tree: a message of one line, a hint, and the exit code of a command that ends with it.

    Args:
        message: One line that names the culprit.
        hint: What the user can do about it, if there is something.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(one_line(message))
        # others' names are in hints too: columns, tiers
        self.hint = None if hint is None else one_line(hint)


class InputError(LayerlabError):
    """What was asked for cannot be done; nothing was run and nothing was written."""

    exit_code = 2


class SpecError(InputError):
    """A key, a value or a flag of the experiment is wrong."""


class DataError(InputError):
    """The data cannot be read or cannot be learned from."""


class PluginError(InputError):
    """A tier is unknown, ambiguous or broken."""


class ContractError(PluginError):
    """A tier was written for another version of the contract."""


class AcceleratorError(InputError):
    """The accelerator or the precision is not available here, or not to this tier."""


class CheckpointError(InputError):
    """A checkpoint cannot be gone on from."""


class TrackingError(InputError):
    """The tracking store cannot be reached, opened or written."""


class RunError(LayerlabError):
    """A run was tried and did not work."""


class DivergedError(RunError):
    """A figure that should be a finite number is not.

    Args:
        what: The figure: "loss", "val_loss", "parameters".
        value: Its value, as text.
        step: The first step (0-based) at which it was seen.
    """

    def __init__(self, what: str, value: str, step: int) -> None:
        super().__init__(f"{what} became {value} at step {step}", hint="try a smaller learning rate: --lr")
        self.step = step


class TierError(RunError):
    """A tier raised an error, or broke the contract."""


class JournalError(RunError):
    """The journal of a run cannot be written, or is damaged."""


class ModelError(RunError):
    """An ONNX model fails a check."""


class Stopped(BaseException):
    """A signal came where nobody looks out for one: the command ends, and nobody takes it for an error.

    Args:
        signum: The number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Interrupted(LayerlabError):  # noqa: N818 -- nobody made an error
    """A signal asked the process to stop.

    Args:
        signum: The number of the signal.

    Attributes:
        report: What was done until then, as it would have been returned; None where nothing was.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.report: Any = None
        # the shell's convention for a process that a signal ended
        self.exit_code = 128 + signum


@contextmanager
def looked_at(path: object, kind: type[LayerlabError], *, hint: str | None = None) -> Iterator[None]:
    """Turns what the system says of a look at a path into one line.

    `Path.is_file` and its like need it too: they answer False where nothing is, and raise where the system
    does not let them look, or where a name is too long.

    Args:
        path: What is looked at.
        kind: What is raised.
        hint: What the user can do about it.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror or error}", hint=hint) from None


def check_is_file(path: str | Path, kind: type[LayerlabError] = InputError) -> None:
    """Looks whether there is a file, before anything heavy is imported to read it.

    Args:
        path: The file, shown as it is given.
        kind: What is raised.

    Raises:
        LayerlabError: Of that kind: there is none, or nobody may look.
    """
    file = Path(path)
    with looked_at(path, kind):
        if not file.is_file():
            raise kind(f"{path}: {'not a file' if file.exists() else 'no such file'}")


def one_line(text: str) -> str:
    """Folds ``text`` into one printable line."""
    folded = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in folded)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint for a name that is not among those known: the closest one, or all there are."""
    names = sorted(set(known))
    # Of long names the comparison takes for ever.
    short = [known for known in names if len(known) <= _LONGEST_COMPARED]
    close = difflib.get_close_matches(name, short, n=1) if len(name) <= _LONGEST_COMPARED else []
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return None
    shown = ", ".join(known[:_LONGEST_COMPARED] for known in names[:_MOST_NAMED])
    return f"there are: {shown}" + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )
