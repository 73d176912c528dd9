"""Generation of the files that follow from the config models: `config/config.yaml`, the JSON schema and the
table of keys in `config/README.md`. Run by `make config`; a test fails when they are stale.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from atomloom.config.base import Section
from atomloom.config.mistakes import sections_of
from atomloom.config.model import Element
from atomloom.config.root import Config, parse_config

DEMO: dict[str, Any] = {
    "dataset": {
        "name": "demo",
        "source": "resources/demo_crystals/cif",
        "labels": {"file": "resources/demo_crystals/id_prop.csv", "id_column": "id"},
        "target": "cohesive_energy_per_atom",
        "unit": "eV/atom",
        "chunks": {"mean": 100},
    },
    "graph": {"max_neighbors": 12},
    # Whole compounds are held out; this is the first seed with which the training set has every element
    # of the validation and test sets.
    "split": {"group": "group", "seed": 14},
    "model": {"name": "icomformer", "width": 64},
    "training": {"epochs": 60, "batch": {"structures": 32}},
}
"""The config of the embedded demo: what `make run` runs."""

QUOTE = "'"
HEAD = """\
# The config of the embedded demo, with every key. Generated from the models in
# workflow/atomloom/config by `make config`; copy it, or write only what differs into a file of your
# own and pass that with --configfile (keys you leave out have the defaults of config/README.md).
"""


def demo_yaml() -> str:
    """`config/config.yaml`: every key of the demo, each with its description above it."""
    lines: list[str] = []
    _write_section(parse_config(DEMO), 0, lines)
    return HEAD + "\n".join(lines) + "\n"


def schema_json() -> str:
    """JSON schema of the config, for editors and validators."""
    schema = Config.model_json_schema()
    found = {section.__name__: section for section in _sections_below(Config)}
    for name, part in {**schema["$defs"], Config.__name__: schema}.items():
        for key, text in descriptions(found[name]).items() if name in found else ():
            if key in part["properties"]:
                told = part["properties"][key] | {"description": text}
                part["properties"][key] = dict(sorted(told.items()))
    return json.dumps(schema, indent=1) + "\n"


def keys_markdown() -> str:
    """The table of all keys: name, default, allowed values, meaning."""
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    _write_rows(Config, "", lines)
    return "\n".join(lines) + "\n"


def write_all(root: Path) -> None:
    """Write the generated files below the project's root."""
    (root / "config" / "config.yaml").write_text(demo_yaml())
    (root / "workflow" / "schemas" / "config.schema.json").write_text(schema_json())
    readme = root / "config" / "README.md"
    readme.write_text(with_keys(readme.read_text()))


def with_keys(text: str) -> str:
    """The README's text with its table of keys renewed."""
    start, end = "<!-- keys: generated -->\n", "<!-- /keys -->"
    before, rest = text.split(start)
    return before + start + keys_markdown() + end + rest.split(end)[1]


@cache
def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Description of each field of a section by its name: the text below it in the source."""
    found: dict[str, str] = {}
    for part in (one for one in reversed(model.__mro__) if issubclass(one, Section)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(body, ast.ClassDef)
        for line, after in pairwise(body.body):
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(line.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[line.target.id] = inspect.cleandoc(after.value.value)
    return found


def _sections_below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and all that are part of it."""
    yield model
    for field in model.model_fields.values():
        for section in sections_of(field.annotation):
            yield from _sections_below(section)


def _write_section(section: BaseModel, depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    for name in type(section).model_fields:
        value = getattr(section, name)
        if depth == 0:
            lines.append("")
        comment = textwrap.wrap(descriptions(type(section)).get(name, ""), 98 - len(indent))
        lines.extend(f"{indent}# {line}" for line in comment)
        if isinstance(value, Section):
            lines.append(f"{indent}{name}:")
            _write_section(value, depth + 1, lines)
        else:
            lines.append(f"{indent}{name}: {_flow(value)}")


def _flow(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).strip()
    return text.removesuffix("...").strip()


def _write_rows(model: type[BaseModel], prefix: str, lines: list[str]) -> None:
    for name, field in model.model_fields.items():
        description = " ".join(descriptions(model).get(name, "").split()).replace("|", "\\|")
        sections = sections_of(field.annotation)
        if sections:
            lines.append(f"| **{prefix}{name}** | | | {description} |")
        for section in sections:
            of_any_name = get_origin(field.annotation) is dict
            label = f"{prefix}{name}.{'NAME.' if of_any_name else ''}"
            if len(sections) > 1:
                title = section.model_fields["name"].default
                lines.append(
                    f"| **{prefix}{name}** `name: {title}` | | | {' '.join((section.__doc__ or '').split())} |"
                )
            _write_rows(section, label, lines)
        if not sections:
            default = "required" if field.is_required() else f"`{_flow(field.default)}`"
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("keyed") is False:
                description += " *(no key)*"
            values = allowed(field.annotation, field.metadata).replace("|", "\\|")
            lines.append(f"| {prefix}{name} | {default} | {values} | {description} |")


def allowed(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Values that a type allows, in words: choices, or the kind and its bounds."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return allowed(members[0], members[1:])
    metadata = [part for item in metadata for part in getattr(item, "metadata", None) or [item]]
    if Element in metadata:
        return "symbol of an element"
    if origin is Literal:
        return ", ".join(f"`{_flow(value).strip(QUOTE)}`" for value in members)
    if origin in (Union, UnionType):
        return ", or ".join(allowed(m, metadata) for m in members if m is not NoneType) + (
            ", or `null`" if NoneType in members else ""
        )
    if annotation in (int, float):
        return f"{'integer' if annotation is int else 'number'}{_bounds(metadata)}"
    if annotation is bool:
        return "`true`, `false`"
    if annotation is str:
        pattern = next((p for m in metadata if (p := getattr(m, "pattern", None))), None)
        return f"text like `{pattern}`" if pattern else "text"
    if origin is dict and members[1] is Any:
        return "mapping"
    if origin is dict:
        return f"mapping of {allowed(members[0])} to {allowed(members[1])}"
    items = list(dict.fromkeys(allowed(member) for member in members if member is not Ellipsis))
    count = f"{len(members)} of" if origin is tuple and Ellipsis not in members else "list of"
    return f"{count}: {'; '.join(items)}"


def _bounds(metadata: Sequence[Any]) -> str:
    found = {
        name: value
        for item in metadata
        for name in ("ge", "gt", "le", "lt")
        if (value := getattr(item, name, None)) is not None
    }
    low = f" from {_number(found['ge'])}" if "ge" in found else ""
    low = f" above {_number(found['gt'])}" if "gt" in found else low
    high = f" to {_number(found['le'])}" if "le" in found else ""
    return low + (f" to below {_number(found['lt'])}" if "lt" in found else high)


def _number(value: float) -> str:
    whole = value == int(value)
    return f"{int(value):,}" if whole and abs(value) < 10**13 else f"{value:g}"


if __name__ == "__main__":
    write_all(Path(__file__).resolve().parents[3])
