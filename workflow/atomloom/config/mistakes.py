"""Mistakes in a config, as one line that names the key.

Pydantic decides whether a value is valid; this module refuses what it lets pass (`true` as 1, empty
text) and puts its findings in plain words.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from atomloom.config.base import Section
from atomloom.config.model import is_by_class, section_named
from atomloom.errors import AtomloomError

MOST_CHARACTERS = 4096


def check_values(content: Mapping[str, Any], model: type[Section], where: str) -> None:
    """Refuse `true` and `false` for numbers and text, and text that is empty or that no name can be.

    Raises:
        AtomloomError: for the first such value.
    """
    for place, value, reason in _wrong_values(content, model, ""):
        shown = f", not {value!r}" if len(repr(value)) <= 60 else ""
        raise AtomloomError(f"{place}: Input should {reason}{shown}", where=where)


def with_present_names(
    content: Mapping[str, Any], model: type[Section], where: str, place: str = ""
) -> dict[str, Any]:
    """The content with each key under its present name, in all sections; warns of former names.

    Raises:
        AtomloomError: when a key is given under both of its names.
    """
    kept = {}
    for name, value in content.items():
        field = model.model_fields.get(name) if isinstance(name, str) else None
        sections = sections_of(field.annotation) if field else []
        if isinstance(value, Mapping):
            # A file that says nothing of the model's name may go over one that does.
            meant = [_meant(sections, value["name"])] if "name" in value and sections else sections
            for section in meant:
                value = with_present_names(value, section, where, f"{place}{name}.")
        kept[name] = value
    try:
        return model.with_present_names(kept, place.removesuffix("."))
    except ValueError as error:
        raise AtomloomError(f"{place}{error}", where=where) from None


def without_empty(content: Mapping[str, Any], model: type[Section]) -> dict[str, Any]:
    """Content without sections of which only the name is written: they have their defaults."""
    kept = {}
    for name, value in content.items():
        field = model.model_fields.get(name) if isinstance(name, str) else None
        sections = sections_of(field.annotation) if field else []
        if value is None and field and sections and isinstance(field.default, BaseModel):
            continue
        single = len(sections) == 1 and isinstance(value, Mapping)
        kept[name] = without_empty(value, sections[0]) if single else value
    return kept


def mistake(
    error: ValidationError,
    content: Mapping[str, Any],
    model: type[Section],
    where: str,
    keys: str = "config/README.md lists all keys",
) -> AtomloomError:
    """First of the errors that pydantic found in the content of a config, as an `AtomloomError`.

    `keys` says where the user finds the names of keys.
    """
    errors = error.errors(include_url=False)
    start = _key(errors[0]["loc"], model)
    same = [other for other in errors if _key(other["loc"], model)[: len(start)] == start]
    # For a value of several possible types, the closest match has the longest location.
    places = [_key(other["loc"], model) for other in same]
    key = max(places, key=len)
    tried = [other for other, place in zip(same, places, strict=True) if place == key]
    reasons = [_reason(other, content, model) for other in tried]
    said = ", or ".join(
        [reasons[0], *(text.removeprefix("Input should be ") for text in reasons[1:])]
    )
    value = tried[0]["input"]
    if tried[0]["type"] == "union_tag_invalid":
        key, value = (*key, "name"), value["name"]
    if tried[0]["type"] not in ("missing", "extra_forbidden") and not isinstance(
        value, (dict, list, tuple)
    ):
        said += f", not {value!r}" if len(repr(value)) <= 60 else ""
    known = tried[0]["type"] in ("extra_forbidden", "missing")
    return AtomloomError(
        f"{'.'.join(key)}: {said}" if key else said,
        where=where,
        todo=keys if known else "",
    )


def _wrong_values(
    content: Mapping[str, Any], model: type[Section], above: str
) -> Iterator[tuple[str, Any, str]]:
    """Iterate over (key, value, what it should do) of values that pydantic would accept."""
    for name, value in content.items():
        field = model.model_fields.get(name) if isinstance(name, str) else None
        if field is None:
            continue
        place = f"{above}{name}"
        sections = sections_of(field.annotation)
        if sections and isinstance(value, Mapping):
            yield from _wrong_values(value, _meant(sections, value.get("name")), f"{place}.")
        elif sections and isinstance(value, list):
            for item in value:
                if isinstance(item, Mapping):
                    yield from _wrong_values(item, sections[0], f"{place}.")
        elif isinstance(value, bool):
            if not _takes_booleans(field.annotation):
                yield place, value, "not be true or false"
        elif value != field.default:
            for text in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(text, bool) and not _takes_booleans(field.annotation):
                    yield place, value, "not be true or false"
                if isinstance(text, str) and (reason := _no_text(text)):
                    yield place, text, reason


def _no_text(text: str) -> str:
    if not text.strip():
        return "not be empty (leave the key out for its default)"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return "have no line breaks or control characters"
    if len(text) > MOST_CHARACTERS:
        return f"have at most {MOST_CHARACTERS:,} characters"
    return ""


def _takes_booleans(annotation: Any) -> bool:
    members = get_args(annotation)
    if any(member is True for member in members):
        return True
    return annotation in (bool, Any) or any(map(_takes_booleans, members))


def _key(location: tuple[Any, ...], model: type[Section]) -> tuple[str, ...]:
    """Keys of an error's location, without the names of types that were tried there."""
    models = model.model_fields.get("model")
    sections = [] if models is None else sections_of(models.annotation)
    tags = {section.model_fields["name"].default for section in sections}
    parts = [str(part) for part in location]
    return tuple(
        part
        for place, part in enumerate(parts)
        if not re.search(r"[\[(]|^(constrained-)?(str|int|float|bool)$", part)
        and not (place == 1 and parts[0] == "model" and part in tags)
    )


def _reason(error: Any, content: Mapping[str, Any], model: type[Section]) -> str:
    if error["type"] == "missing":  # the value around it is not wrong
        return "is required, and the config has none"
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1], content, model)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return "unknown key" + (
            f", did you mean `{close[0]}`?" if close else f" (known: {', '.join(known)})"
        )
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "union_tag_invalid":
        return f"Input should be {error['ctx']['expected_tags']} or `module:Class`"
    if error["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return "Input should be a mapping of keys"
    if error["type"] in ("list_type", "tuple_type"):
        return "Input should be a list"
    if error["type"] == "string_type" and isinstance(error["input"], (int, float)):
        said += " (put it in quotes)"
    return said


def _known_keys(location: tuple[Any, ...], content: Any, model: type[Section]) -> list[str]:
    """Keys of the section at a location in the config; a part may name a member of a union."""
    found, value, of_any_name = [model], content, False
    for part in location:
        if isinstance(part, int) or part.startswith("("):  # one of a list, or a tag
            continue
        if of_any_name:  # a key of a mapping of sections, which is up to the user
            value, of_any_name = value.get(part) if isinstance(value, Mapping) else None, False
            continue
        named = [section for section in found if _is_tag(section, part)]
        held = [
            section.model_fields[part].annotation
            for section in found
            if part in section.model_fields
        ]
        of_any_name = any(get_origin(annotation) is dict for annotation in held)
        found = named or [inner for annotation in held for inner in sections_of(annotation)]
        value = value.get(part) if isinstance(value, Mapping) and not named else value
        name = value.get("name") if isinstance(value, Mapping) else value
        if len(found) > 1 and is_by_class(name):
            found = [_meant(found, name)]
    return list(found[0].model_fields) if found else []


def sections_of(annotation: Any) -> list[type[Section]]:
    """Sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    inner = [found for member in get_args(annotation) for found in sections_of(member)]
    return list(dict.fromkeys(inner))


def _meant(sections: Sequence[type[Section]], name: Any) -> type[Section]:
    """Section that a name stands for, among those that a field may hold; the first if it is not a name."""
    if len(sections) > 1 and is_by_class(name):
        with suppress(ValueError):  # reported when the section is validated
            return section_named(name) or sections[0]
    return next((section for section in sections if _is_tag(section, name)), sections[0])


def _is_tag(model: type[Section], part: Any) -> bool:
    field = model.model_fields.get("name")
    return field is not None and part == field.default
