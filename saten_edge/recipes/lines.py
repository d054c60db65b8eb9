"""YAML as plain data that knows its lines; nothing in a file can make an object, refer to itself, or grow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from saten_runtime.errors import UsageError

__all__ = ["Lines", "read_yaml", "write_yaml"]

# path of keys and numbers → the line, from 1 on, where it stands
Lines = dict[tuple[str | int, ...], int]

MOST_BYTES = 1 << 20
MOST_NESTED = 16
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types
    """YAML 1.1's safe half, and the numbers of YAML 1.2 that it takes for text, such as 1e-4."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc] # yaml has no types
    """Writes what `_Loader` reads: text that looks like a number is quoted, and nothing refers to something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write out whatever stands twice."""
        return True


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def write_yaml(data: Any) -> str:
    """Plain data as YAML that `read_yaml` reads as the same data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """The data in a YAML file, and where everything in it stands.

    Raises:
        UsageError: with file and line: not YAML, a key said twice, an alias, a tag, or more than a recipe can be.
    """
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise UsageError(f"{path}: cannot be read ({cause.strerror})") from None
    if len(content) > MOST_BYTES:
        raise UsageError(f"{path}: has {len(content)} bytes, a recipe at most {MOST_BYTES}")
    lines: Lines = {}
    try:
        _refuse_aliases(path, content)
        loader = _Loader(content)
        node = loader.get_single_node()
        return (None if node is None else _plain(path, loader, node, (), lines)), lines
    except (yaml.YAMLError, ValueError) as cause:
        mark = getattr(cause, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(f"{where}: not YAML ({getattr(cause, 'problem', None) or cause})") from None


def _refuse_aliases(path: Path, content: bytes) -> None:
    """Refuse what a small file could become a large one by, and what nests deeper than a recipe, before it is built."""
    depth = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{path}:{event.start_mark.line + 1}: an alias (*{event.anchor}); write out what it names")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_NESTED:
            raise UsageError(f"{path}:{event.start_mark.line + 1}: nested deeper than {MOST_NESTED}")


def _plain(path: Path, loader: Any, node: Any, place: tuple[str | int, ...], lines: Lines) -> Any:
    line: int = node.start_mark.line + 1
    lines[place] = line
    if node.tag not in _PLAIN:
        what = repr(node.value)[:40] if isinstance(node, yaml.ScalarNode) else "something"
        raise UsageError(f"{path}:{line}: {what} has the type {node.tag:.60}; quote it, or leave out its tag")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(path, loader, each, (*place, number), lines) for number, each in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(path, loader, node, place, lines)
    return loader.construct_object(node)


def _mapping(path: Path, loader: Any, node: Any, place: tuple[str | int, ...], lines: Lines) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key is None or key_node.tag != "tag:yaml.org,2002:str":
            raise UsageError(f"{path}:{line}: a key that is no word; expected names such as budget")
        if key in found:
            raise UsageError(f"{path}:{line}: {key} is said twice")
        here = (*place, key)
        found[key] = _plain(path, loader, value, here, lines)
        lines[here] = line
    return found
