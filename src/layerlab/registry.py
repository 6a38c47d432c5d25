"""Tiers by name: found through the entry-point group ``layerlab.tiers``, loaded only when chosen.

Listing reads the metadata of installed distributions and runs none of their code. The built-in tiers come
through the same group. ``LAYERLAB_PLUGINS=a,b`` allows only those distributions beside the built-ins; set to
nothing it allows none.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlab.errors import ContractError, PluginError, Stopped, did_you_mean, one_line

if TYPE_CHECKING:
    from importlib import metadata

    from layerlab.tier import Tier

GROUP = "layerlab.tiers"
ALL = "all"
_OWN = "layerlab"


@dataclass(frozen=True)
class TierRow:
    """What is known of a tier without loading it.

    Attributes:
        name: The name of the entry point.
        distribution: The distribution that offers it.
        version: The version of that distribution.
        summary: One line: of a built-in tier what is by hand, of another the distribution's summary.
        selector: What selects it: ``name``, or ``distribution:name`` where others have the same name.
        target: Where its class is, as ``module:attribute``.
    """

    name: str
    distribution: str
    version: str
    summary: str
    selector: str
    target: str
    entry_point: metadata.EntryPoint = field(repr=False, compare=False)

    @property
    def builtin(self) -> bool:
        """Whether layerlab itself offers the tier."""
        return self.distribution == _OWN

    @property
    def label(self) -> str:
        """What errors call it."""
        return f"tier '{self.name}' of {self.distribution} {self.version}"

    def as_dict(self) -> dict[str, str]:
        """What ``layerlab plugins --json`` prints of the row."""
        names = ("name", "selector", "distribution", "version", "summary", "target")
        return {name: getattr(self, name) for name in names}


def rows() -> list[TierRow]:
    """All tiers that may be used: the built-ins in the order of the ladder, then others by name."""
    from importlib import metadata

    allowed = _allowed()
    found: list[TierRow] = []
    about: dict[int, metadata.PackageMetadata | None] = {}  # reading it parses a file, every time
    for point in metadata.entry_points(group=GROUP):
        distribution = point.dist
        assert distribution is not None  # an entry point that was found has one
        if id(distribution) not in about:
            about[id(distribution)] = _facts(distribution)
        facts = about[id(distribution)]
        if facts is None:
            continue
        if allowed is None or normalised(facts["Name"]) in allowed | {_OWN}:
            found.append(_row(facts, point))
    named: dict[str, list[TierRow]] = {}
    for row in found:
        named.setdefault(row.name, []).append(row)
    listed = [_with_selector(row, named[row.name]) for row in found]
    order = {name: i for i, name in enumerate(builtin_names())}
    return sorted(
        listed,
        key=lambda r: (not r.builtin, order.get(r.name, 0) if r.builtin else 0, r.name, r.distribution),
    )


def _others(name: str, listed: list[TierRow]) -> str | None:
    """A hint for a name that no tier has that may be used."""
    from importlib import metadata

    distribution, _, short = name.rpartition(":")
    if (allowed := _allowed()) is not None:
        for point in metadata.entry_points(group=GROUP):
            offered = normalised(point.dist.name if point.dist is not None else "")
            meant = distribution == "" or normalised(distribution) == offered
            if point.name == short and meant and offered not in allowed | {_OWN}:
                return "it is installed, and LAYERLAB_PLUGINS leaves it out"
    return did_you_mean(name, [row.selector for row in listed])


def builtin_names() -> list[str]:
    """The names of the built-in tiers, from most to least by hand."""
    return ["numpy", "tensors", "autograd", "custom-function", "nn", "optim", "custom-module"]


def find(name: str, listed: list[TierRow] | None = None) -> TierRow:
    """The row of a tier by ``name`` or ``distribution:name``. A built-in tier wins a clash of names.

    Args:
        name: What was asked for.
        listed: The rows to look in; None: all there are.

    Raises:
        PluginError: No tier of that name, or several.
    """
    listed = rows() if listed is None else listed
    distribution, colon, short = name.rpartition(":")
    if colon:
        hits = [
            r for r in listed if r.name == short and normalised(r.distribution) == normalised(distribution)
        ]
    else:
        hits = [r for r in listed if r.name == name]
        hits = [r for r in hits if r.builtin] or hits
    if not hits:
        raise PluginError(f"no tier is called '{one_line(name)}'", hint=_others(name, listed))
    if len(hits) > 1:
        offered = " and ".join(f"{r.distribution} {r.version}" for r in hits)
        choices = " or ".join(f"{r.distribution}:{r.name}" for r in hits)
        raise PluginError(f"'{name}' is offered by {offered}", hint=f"say which: {choices}")
    return hits[0]


def select(names: list[str] | tuple[str, ...]) -> list[TierRow]:
    """The rows of several tiers, each once, in the order given; "all" is the seven built-in ones.

    Raises:
        PluginError: A name that selects nothing, or several.
    """
    listed = rows()
    chosen: dict[str, TierRow] = {}
    for name in names:
        for single in builtin_names() if name == ALL else [name]:
            row = find(single, listed)
            chosen.setdefault(row.selector, row)
    return list(chosen.values())


def load(row: TierRow) -> type[Tier]:
    """Imports a tier's class.

    Raises:
        PluginError: The import fails in whatever way, or what it gives is not a tier.
    """
    from layerlab.tier import Tier

    where = row.label
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            tier = row.entry_point.load()
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"{where} cannot be loaded: {reason}", hint="see: layerlab plugins --check"
        ) from error
    if not (isinstance(tier, type) and issubclass(tier, Tier)):
        raise PluginError(f"{where}: {row.target} is not a subclass of layerlab.Tier")
    if mismatch := tier.contract_mismatch():
        raise ContractError(f"{where}: {mismatch[0]}", hint=mismatch[1])
    if fault := tier.contract_fault():
        raise PluginError(f"{where}: {fault}")
    return tier


def describe(row: TierRow, tier: type[Tier]) -> dict[str, Any]:
    """All that can be said of a loaded tier: its documentation, recipe, capabilities and source."""
    module = sys.modules[tier.__module__]
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):  # a compiled module has none
        source = ""
    return {
        **row.as_dict(),
        "contract_version": getattr(tier, "contract_version", None),
        "accelerators": sorted(tier.accelerators),
        "precisions": sorted(tier.precisions),
        "recipe": asdict(tier.recipe),
        "splits_step": tier.splits_step(),
        "resumable": tier.resumable(),
        "documentation": "\n\n".join(inspect.cleandoc(d) for d in (module.__doc__, tier.__doc__) if d),
        "source": source,
    }


def normalised(name: str) -> str:
    """A distribution's name as the packaging specifications compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _allowed() -> set[str] | None:
    text = os.environ.get("LAYERLAB_PLUGINS")
    return None if text is None else {normalised(part.strip()) for part in text.split(",") if part.strip()}


def _facts(distribution: metadata.Distribution) -> metadata.PackageMetadata | None:
    """A distribution's metadata; None for what an uninstall that was broken off leaves behind."""
    try:
        facts = distribution.metadata
    except FileNotFoundError:  # so says the backport, which takes over where something imports it
        return None
    return facts if "Name" in facts and "Version" in facts else None


def _row(facts: metadata.PackageMetadata, point: metadata.EntryPoint) -> TierRow:
    distribution, name = one_line(facts["Name"]), one_line(point.name)
    summary = _first_sentence(point.value) if distribution == _OWN else None
    return TierRow(
        name=name,
        distribution=distribution,
        version=one_line(facts["Version"]),
        summary=summary or one_line((facts.get_all("Summary") or [""])[0]),
        selector=name,
        target=one_line(point.value),
        entry_point=point,
    )


def _with_selector(row: TierRow, namesakes: list[TierRow]) -> TierRow:
    clash = len(namesakes) > 1 and not row.builtin
    full = f"{row.distribution}:{row.name}"
    return TierRow(**{**vars(row), "selector": full}) if clash else row


def _first_sentence(target: str) -> str | None:
    """The first line of a built-in tier's file, its first sentence; read without importing or parsing it."""
    relative = target.partition(":")[0].split(".")[1:]
    path = Path(__file__).parent.joinpath(*relative).with_suffix(".py")
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().strip().strip('"') or None
    except OSError:
        return None
