"""Base of every config section: strictness, immutability and a keyed dump.

A field whose value changes no result (workers, device, paths) is declared with `unkeyed(...)` and
stays out of every key. A field added later is declared with `keyed_when_set(...)`, one with a
new name with `renamed(...)`: both leave every key as it was. Every number has bounds: beyond them no
value is useful, and it would lead to an endless run or an error far from its cause.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from atomloom.errors import AtomloomError
from atomloom.former import warn
from atomloom.store.files import expand_home

MOST = 1_000_000_000
"""Bound of counts that may exceed the size of any data set, as "all" is often written."""
MOST_SEED = 2**32 - 1
MOST_WIDTH = 4096
MOST_LAYERS = 100
DEEPEST = 16
"""Max levels of mappings and lists in a value without a fixed shape."""


class Section(BaseModel):
    """Section of the config: unknown keys are errors, values are frozen after validation.

    No number may be NaN or infinite. Descriptions of fields stand below them, where `config.generate` reads
    them: pydantic would read the sources at each start.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _know_former_names(cls, data: Any) -> Any:
        return cls.with_present_names(data) if isinstance(data, Mapping) else data

    @classmethod
    def former_names(cls) -> dict[str, str]:
        """Former name of a key -> its present name, for renamed keys."""
        fields = cls.model_fields.items()
        return {former: name for name, field in fields if (former := _extra(field).get("former"))}

    @classmethod
    def with_present_names(cls, content: Mapping[str, Any], place: str = "") -> dict[str, Any]:
        """Content of this section with each key under its present name; warns of former ones.

        If a key is given under both names, the one that is not at its default counts: Snakemake merges options
        of its command line into a file that writes out every default.

        Args:
            content: of the section.
            place: location of the section in the config, for messages; by default its class.

        Raises:
            ValueError: when a key is given under both of its names, neither of them by default.
        """
        former, place = cls.former_names(), place or cls.__name__
        kept: dict[str, Any] = {}
        for given, value in content.items():
            name = former.get(given, given)
            if name in kept:
                default = cls.model_fields[name].get_default()
                if default not in (kept[name], value):
                    before = next(old for old, new in former.items() if new == name)
                    raise ValueError(f"{before} is the former name of {name}: give one")
                value = value if kept[name] == default else kept[name]
            kept[name] = value
        for given in (key for key in content if key in former):
            warn(f"{place}.{given}", f"{place}.{former[given]}")
        return kept

    def key_content(self) -> dict[str, Any]:
        """All fields that determine results, defaults filled in, as plain JSON values."""
        content: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra, value = _extra(field), _plain(getattr(self, name))
            keyed = extra.get("keyed", True)
            if keyed is True or (keyed == WHEN_SET and value != _plain(field.get_default())):
                content[extra.get("former", name)] = value
        return content


def check_plain(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse values that a key cannot hold or that no program means as an option."""

    def check(value: Any, name: str, depth: int) -> None:
        if depth > DEEPEST:
            raise ValueError(f"{name} nests deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"{name}: the key {key!r} is not text")
                check(item, f"{name}.{key}" if name else key, depth + 1)
        elif isinstance(value, (list, tuple)):
            for item in value:
                check(item, name, depth + 1)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} should be a finite number")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{name} should be a number of at most 63 bits")
        elif isinstance(value, str) and any(
            unicodedata.category(character) == "Cs" or character == "\0" for character in value
        ):
            raise ValueError(f"{name} should have no null and half characters")
        elif not isinstance(value, (str, bool, int, float, type(None))):
            raise ValueError(
                f"{name} is read as a {type(value).__name__}: put it in quotes if it is text"
            )

    check(options, "", 0)
    return options


Options = Annotated[dict[str, Any], AfterValidator(check_plain)]
"""Keyword arguments of a foreign function or class: plain values by name."""


WHEN_SET = "when set"


def unkeyed(default: Any = ..., **options: Any) -> Any:
    """Field that changes speed or place of a run, but never its results."""
    return Field(default, json_schema_extra={"keyed": False}, **options)


def keyed_when_set(default: Any, **options: Any) -> Any:
    """Field that was added later, and enters a key only if it is not at its default.

    The default must stand for the behaviour before the field was added.
    """
    return Field(default, json_schema_extra={"keyed": WHEN_SET}, **options)


def renamed(former: str, default: Any = ..., **options: Any) -> Any:
    """Field that was called `former`: it is still accepted under that name, which keys still hold."""
    return Field(default, json_schema_extra={"former": former}, **options)


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.key_content()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def expand_variables(path: str) -> str:
    """Path of the config with `${NAME}` replaced by environment variables and a leading `~` by the home
    folder.

    The config keeps the name, so that keys, merged configs and run cards do not depend on where the
    data are.

    Raises:
        AtomloomError: when a variable is not set, or the home folder is not known.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise AtomloomError(
                f"environment variable {match[1]} is not set",
                where=path,
                todo=f"export {match[1]}=...",
            )
        return os.environ[match[1]]

    return expand_home(re.sub(r"\$\{(\w+)\}", value, path))
