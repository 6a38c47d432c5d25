"""YAML as experiments use it: plain values, no tags, no key given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerlab.errors import SpecError


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a mapping from a YAML file; a key given twice is an error, and so is any tag.

    Raises:
        SpecError: The file is missing, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        ) from None
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
        SpecError: The text is not YAML, has a tag, or gives a key twice.
    """
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                line = key_node.start_mark.line + 1
                raise SpecError(f"{source}: a key is not text (line {line})")
            if key in seen:
                raise SpecError(f"{source}: key '{key}' is given twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return dict(loader.construct_mapping(node, deep=True))

    UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, UniqueKeys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise SpecError(f"{source}: not valid YAML: {problem}{where}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{source}: not valid YAML: {error}") from None
