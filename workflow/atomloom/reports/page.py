"""Parts that all pages share: the template environment, the script, drawings, formulas, links."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from atomloom.reports import figures, formats
from atomloom.reports.formats import NONE, number, with_unit

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Drawing:
    """Figure in the page."""

    svg: Markup
    caption: str


def drawing(
    figure: Figure, name: str, caption: str, tips: Mapping[str, Sequence[str]] | None = None
) -> Drawing:
    """Convert a figure for the page; arguments as of `figures.inline_svg`."""
    return Drawing(Markup(figures.inline_svg(figure, name, caption, tips)), caption)


def formula_markup(formula: str) -> Markup:
    """Formula with its numbers as subscripts: Na2Cl becomes Na<sub>2</sub>Cl."""
    parts = re.split(r"(?<=[A-Za-z)\]])(\d+(?:\.\d+)?)", formula)
    return Markup("").join(
        Markup("<sub>{}</sub>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


def link(path: Path | None, folder: Path) -> str:
    """Address of a file, relative to the folder of the page, as a browser takes it."""
    if path is None:
        return ""
    with contextlib.suppress(ValueError):  # another drive on Windows
        path = Path(os.path.relpath(path, folder))
    return quote(path.as_posix(), safe="/&")


def relinked(page: str, folder: Path, other: Path) -> str:
    """Page whose links are relative to `folder`, for another folder."""

    def moved(match: re.Match[str]) -> str:
        address = unquote(html.unescape(match[0]))
        slash = "/" if address.endswith("/") else ""
        return html.escape(link(Path(os.path.join(folder, address)), other) + slash)

    return _RELATIVE.sub(moved, page)


_RELATIVE = re.compile(r'(?<= href=")(?!#|[a-z]+:)[^"]+')


def error_text(value: object, unit: str) -> str:
    """Error with its unit."""
    return with_unit(*formats.measured(value, unit))


def count_text(value: object) -> str:
    """Count as text; a dash where it is absent."""
    found = formats.finite(value)
    if found is None:
        return NONE
    return number(int(found)) if found.is_integer() else number(found)


@cache
def environment() -> Environment:
    """Environment of the templates: escapes everything, and knows how numbers are written."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals |= {
        "script": Markup(script),
        # The page runs this script and no other, whatever text its tables hold.
        "script_source": Markup(f"'sha256-{digest}'"),
        "light": asdict(figures.LIGHT),
        "dark": asdict(figures.DARK),
    }
    made.filters |= {
        "number": number,
        "fixed": formats.fixed,
        "count": count_text,
        "percent": formats.percent,
        "duration": formats.duration,
        "memory": lambda mebibytes: (
            formats.byte_size((formats.finite(mebibytes) or 0) * 2**20)
            if formats.finite(mebibytes) is not None
            else NONE
        ),
        "unit": with_unit,
        "formula": formula_markup,
    }
    return made
