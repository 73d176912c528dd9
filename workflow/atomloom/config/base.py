"""What every config section has in common: strictness, immutability and a keyed dump.

A field whose value changes no result (workers, device, paths) is declared with `unkeyed(...)` and
stays out of every key.
"""

from __future__ import annotations

import os
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from atomloom.errors import AtomloomError


class Section(BaseModel):
    """One section of the config: unknown keys are errors, values are frozen after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def key_content(self) -> dict[str, Any]:
        """All fields that determine results, defaults filled in, as plain JSON values."""
        content: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("keyed") is False:
                continue
            content[name] = _plain(getattr(self, name))
        return content


def unkeyed(default: Any = ..., **options: Any) -> Any:
    """A field that changes how fast or where, but never what comes out."""
    return Field(default, json_schema_extra={"keyed": False}, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.key_content()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def expand_variables(path: str) -> str:
    """A path of the config with the values of environment variables in place of `${NAME}`.

    The config keeps the name, so that keys, merged configs and run cards are the same wherever the
    data are.

    Raises:
        AtomloomError: when a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise AtomloomError(
                f"environment variable {match[1]} is not set",
                where=path,
                todo=f"export {match[1]}=...",
            )
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, path)
