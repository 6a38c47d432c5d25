"""YAML as experiments use it: plain values, no tags, no aliases, no key given twice.

An experiment is a page of plain values. What YAML can do beyond that has done harm elsewhere: a tag names
code, aliases of aliases grow without end, and a merged key is one that the reader does not see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerlab.errors import SpecError

# Characters of a file: experiments have a few hundred, and a parser in Python takes its time.
LONGEST = 2**16


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a mapping from a YAML file; see `parse_yaml`.

    Raises:
        SpecError: The file is missing, is not YAML, or is not a mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)  # no more: it may be a device that has no end
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: cannot be read: not UTF-8 text") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a name that no file can have
        raise SpecError(f"{path}: cannot be read: {error}") from None
    tree = parse_yaml(text, str(path))
    if tree is None:
        raise SpecError(f"{path}: the file is empty")
    if not isinstance(tree, dict):
        raise SpecError(f"{path}: not a mapping of keys to values")
    return tree


def parse_yaml(text: str, source: str) -> Any:
    """Plain values from YAML text.

    Args:
        text: The YAML.
        source: What errors call it.

    Raises:
        SpecError: The text is too long, is not YAML, has a tag or an alias, or gives a key twice.
    """
    import yaml

    if len(text) > LONGEST:
        raise SpecError(f"{source}: longer than the {LONGEST} characters that an experiment may have")

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                raise SpecError(f"{source}: alias '*{event.anchor}' (line {line}): write the value out")
            if event.tag is not None:
                raise SpecError(f"{source}: tag '{event.tag}' (line {line}): values are plain")
            return super().compose_node(parent, index)

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key_node.tag != "tag:yaml.org,2002:str":
                raise SpecError(f"{source}: a key is not text (line {line})")
            if key in seen:
                raise SpecError(f"{source}: key '{key}' is given twice (line {line})")
            seen.add(key)
        return dict(loader.construct_mapping(node, deep=True))

    Plain.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Plain)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise SpecError(f"{source}: not valid YAML: {problem}{where}") from None
    except RecursionError:
        raise SpecError(f"{source}: nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a number, a date or a character that cannot be
        raise SpecError(f"{source}: not valid YAML: {error}") from None
