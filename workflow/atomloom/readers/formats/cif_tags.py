"""Values of a CIF data block by tag, with the spellings of all dictionaries unified.

It knows nothing of what the values mean.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

UNKNOWN = frozenset(("?", ".", "''", '""', "'?'", '"?"', "'.'"))
_SITE = "_atom_site_fract_x"
_CATEGORIES = ("_atom_site_", "_space_group", "_symmetry", "_symetry", "_magnetic_space", "_cell_")


class Tags:
    """Values of one block; tags are given in lower case, with the dots of newer dictionaries
    (_space_group.IT_number) as underscores.

    Tags are looked up one by one: a structure needs few of the hundreds that a file may have.
    """

    def __init__(self, block: Any) -> None:
        self._block = block
        self._dotted = bool(block.get_mmcif_category_names())

    def first(self, tag: str) -> str | None:
        """Value as written, the first one of a loop; None if it is unknown or missing."""
        if self._dotted:
            value = self.every.get(tag, "?")[0]
        else:
            value = self._block.find_value(tag)
        return None if value in UNKNOWN else value

    def text(self, tag: str) -> str | None:
        """Value without quotes."""
        value = self.first(tag)
        return None if value is None else unquoted(value)

    def column(self, tag: str) -> list[str]:
        """All values; empty where all of them are unknown."""
        if self._dotted:
            values = self.every.get(tag, [])
        else:
            found = self._block.find_values(tag)
            # iterating over a few of them is slow
            values = [found[0]] if len(found) == 1 else list(found) if found else []
        return [] if UNKNOWN.issuperset(values) else values

    @property
    def sites(self) -> dict[str, list[str]]:
        """Columns of the table of atom sites; empty where there are none."""
        if self._dotted:
            return {tag: v for tag, v in self.every.items() if tag.startswith("_atom_site_")}
        loop = self._block.find_loop(_SITE).get_loop()
        if loop is not None:
            return _columns(loop)
        return self.every if self._block.find_value(_SITE) is not None else {}  # a single site

    @cached_property
    def every(self) -> dict[str, list[str]]:
        """All values, except loops that do not concern cell, symmetry or sites."""
        found: dict[str, list[str]] = {}
        for item in self._block:
            if (pair := item.pair) is not None:
                found[_plain(pair[0])] = pair[1:]
            elif (loop := item.loop) is not None and _plain(loop.tags[0]).startswith(_CATEGORIES):
                found |= _columns(loop)
        return found


def _columns(loop: Any) -> dict[str, list[str]]:
    # all values at once, then every n-th: much faster than asking for each column
    values, tags = loop.values, _all_plain(*loop.tags)
    width = len(tags)
    return {tag: values[place::width] for place, tag in enumerate(tags)} if values else {}


@lru_cache(maxsize=512)
def _all_plain(*names: str) -> tuple[str, ...]:
    return tuple(map(_plain, names))


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return name.lower().replace(".", "_")


def unquoted(value: str) -> str:
    """Text of a value as written."""
    if value[0] in "'\"":
        return value[1:-1].strip()
    return value.strip(";\r\n ") if value[0] == ";" else value
