"""``layerlab plugins new``: a pip-installable distribution with one tier that passes, from a template."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template

from layerlab import registry
from layerlab.errors import PluginError, one_line
from layerlab.tier import CONTRACT_VERSION

_TEMPLATE = Path(__file__).parent / "template"
_SUFFIX = ".template"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST_NAME = 50


@dataclass(frozen=True)
class NewPlugin:
    """A distribution that was made.

    Attributes:
        name: Name of its tier.
        distribution: Name of the distribution.
        path: Its folder.
        files: Its files, relative to the folder.
    """

    name: str
    distribution: str
    path: Path
    files: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """What ``layerlab plugins new --json`` prints."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "path": str(self.path),
            "files": list(self.files),
        }


def new_plugin(name: str, directory: Path = Path()) -> NewPlugin:
    """Makes a distribution ``layerlab-NAME`` in a new folder of that name.

    Args:
        name: Name of the tier: lower-case letters and digits, in words joined by hyphens.
        directory: Where the folder is made.

    Raises:
        PluginError: The name cannot be used or is taken, or the folder is there already or cannot be made;
            nothing was written.
    """
    _check_name(name)
    distribution = f"layerlab-{name}"
    target = directory / distribution
    package = distribution.replace("-", "_")
    words = "".join(word.capitalize() for word in name.split("-"))
    values = {
        "name": name,
        "distribution": distribution,
        "package": package,
        # `Tier` alone would hide the class that it derives from
        "class_name": words if words.endswith("Tier") and words != "Tier" else f"{words}Tier",
        "version": version("layerlab"),
        "contract": str(CONTRACT_VERSION),
    }
    try:
        if not directory.is_dir():
            raise PluginError(f"{one_line(str(directory))}: there is no such folder", hint="make it first")
        if target.exists() or target.is_symlink():
            raise PluginError(
                f"{one_line(str(target))} is there already", hint="choose another name or --directory"
            )
        # Written aside and renamed into place: there is a whole folder, or none.
        with tempfile.TemporaryDirectory(dir=directory, prefix=f".{distribution}-") as aside:
            made = Path(aside) / distribution
            files = _render(made, package, values)
            made.rename(target)
    except OSError as error:
        raise PluginError(
            f"{one_line(str(target))}: cannot be written: {error.strerror}",
            hint="choose another folder: --directory",
        ) from None
    return NewPlugin(name, distribution, target, files)


def _check_name(name: str) -> None:
    """Refuses a name that is none, or that is taken.

    Raises:
        PluginError: With what is wrong with it.
    """
    shown = one_line(name)
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise PluginError(
            f"'{shown}' cannot be the name of a tier",
            hint=f"lower-case letters and digits, words joined by hyphens, up to {_LONGEST_NAME}: my-tier",
        )
    if name == registry.ALL:
        raise PluginError(f"'{name}' stands for the built-in tiers", hint="choose another name")
    for row in registry.rows():
        if row.name == name:
            raise PluginError(
                f"tier '{name}' exists already: {row.distribution} {row.version}", hint="choose another name"
            )


def _render(folder: Path, package: str, values: dict[str, str]) -> tuple[str, ...]:
    files = []
    for source in sorted(_TEMPLATE.rglob(f"*{_SUFFIX}")):
        relative = source.relative_to(_TEMPLATE).as_posix().removesuffix(_SUFFIX)
        relative = relative.replace("src/package/", f"src/{package}/").replace("gitignore", ".gitignore")
        relative = relative.replace("test_tier.py", f"test_{package.removeprefix('layerlab_')}.py")
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(source.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
        files.append(relative)
    return tuple(files)
