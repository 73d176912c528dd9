"""Config files as plain nested values, from YAML that is unambiguous.

YAML silently takes the last of two equal keys; anchors let a file of ten lines expand to more values
than memory holds. Both are errors here.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from atomloom.config.base import DEEPEST
from atomloom.errors import AtomloomError
from atomloom.store.files import read_plain

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000
"""Max number of values in a file, counting each repetition by an alias."""


class _TwiceError(ValueError):
    """Key that occurs twice in one mapping."""


class _OtherBaseError(ValueError):
    """Number to the base 60."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a mapping names each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                raise _TwiceError(
                    f"`{key.value}` occurs twice, in lines {lines[key.value]} and {line}"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """Number, but not to the base 60, as which YAML takes digits and colons: `1:30:00` would be 5400."""
    if ":" in node.value:
        raise _OtherBaseError(
            f"line {node.start_mark.line + 1}: {node.value} is to YAML a number to the base 60"
        )
    whole = node.tag.endswith(":int")
    return (loader.construct_yaml_int if whole else loader.construct_yaml_float)(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML or JSON file.

    Raises:
        AtomloomError: when the file cannot be read, is not YAML, names a key twice, is far too large, or
            holds anything but sections.
    """
    try:
        data = read_plain(path, 4 * MOST_BYTES)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise AtomloomError(
            "config file cannot be read", where=path, todo=str(error.strerror)
        ) from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AtomloomError(
            f"line {line} is not UTF-8", where=path, todo="save it as UTF-8"
        ) from None
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f"{len(text):,} characters are not a config")
        content = _parse(text)
    except _TwiceError as error:
        raise AtomloomError(str(error), where=path, todo="keep one of them") from None
    except _OtherBaseError as error:
        todo = "write one number in the unit of its key, or text in quotes"
        raise AtomloomError(str(error), where=path, todo=todo) from None
    except RecursionError:
        raise AtomloomError("nests far too deeply", where=path) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise AtomloomError(f"not valid YAML: {error}", where=path) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise AtomloomError("a config is a mapping of sections", where=path)
    return content


def _parse(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError:
            pass  # YAML has such mappings as well
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _count(node, {}, ())
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise _TwiceError(f"`{key}` occurs twice")
        content[key] = value
    return content


def _count(node: Any, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Number of values below a node, aliases expanded; ValueError if too many, or one contains itself."""
    if id(node) in above:
        raise ValueError("an anchor contains itself")
    if len(above) > 2 * DEEPEST:
        raise ValueError(f"nests deeper than {2 * DEEPEST} levels")
    if id(node) not in known:
        inner = [] if node is None or isinstance(node, yaml.ScalarNode) else node.value
        below = [part for item in inner for part in (item if isinstance(item, tuple) else [item])]
        known[id(node)] = 1 + sum(_count(part, known, (*above, id(node))) for part in below)
    if known[id(node)] > MOST_VALUES:
        raise ValueError(f"expands to more than {MOST_VALUES:,} values")
    return known[id(node)]
