"""The figures of docs/measured.md are those that the benchmarks wrote, and the README's are among them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCALES = 1.0, 1e3, 1e2, 1e-6, 1 / 60
"""Units of a table from those of a result file: ms, meV and per cent, MB, minutes."""


def rows(page: str) -> list[list[str]]:
    """Cells of all rows of a page's tables of figures."""
    tables = re.findall(r"\| what \| ours \| theirs .*\n\|[-|]+\n((?:\|.*\n?)+)", page)
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for table in tables
        for line in table.splitlines()
    ]


MEASURED = rows((ROOT / "docs" / "measured.md").read_text())


def number(text: str) -> float:
    """The one number that ends a cell."""
    return float(text.split()[-1].replace(",", ""))


def half_a_digit(cell: str) -> float:
    """What rounding to the digits shown may have changed."""
    mantissa, _, exponent = cell.split()[-1].partition("e")
    return 0.505 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def leaves(value: object) -> Iterator[float]:
    """Numbers anywhere in a result."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    elif isinstance(value, int | float):
        yield value


def test_there_are_rows():
    assert len(MEASURED) > 100


def test_every_figure_is_one_number_and_the_ratio_is_that_of_the_two():
    for what, ours, theirs, ratio, _ in MEASURED:
        assert re.fullmatch(r"[\d,.]+(e-?\d+)?", ours), what
        if theirs == "-":
            assert ratio == "-", what
        else:
            found = number(theirs) / number(ours)
            assert number(ratio) in (
                pytest.approx(found, rel=0.01),
                pytest.approx(1 / found, rel=0.01),
            ), what


def test_every_figure_stands_in_the_result_of_its_command():
    found: dict[str, list[float]] = {}
    for what, ours, theirs, _, command in MEASURED:
        name = command.strip("`").split()[2].rpartition(".")[2]
        if name not in found:
            result = ROOT / "benchmarks" / "results" / f"{name}.json"
            found[name] = list(leaves(json.loads(result.read_text())))
        for cell in (ours, theirs):
            if cell != "-":
                assert any(
                    math.isclose(
                        number(cell), leaf * scale, rel_tol=5e-4, abs_tol=half_a_digit(cell)
                    )
                    for leaf in found[name]
                    for scale in SCALES
                ), (what, cell)


def test_headline_figures_of_the_readme_stand_there_too():
    headlines = rows((ROOT / "README.md").read_text())
    assert 0 < len(headlines) <= 8
    for row in headlines:
        assert row in [cells[:4] for cells in MEASURED]


def test_the_table_of_recipes_is_that_of_its_result():
    page = (ROOT / "docs" / "recipes.md").read_text()
    table = re.findall(
        r"^\| (lithium|ethanol) \| (\w+) \| `?(.+?)`? \| (\d+) \| (\S+) \| (\S+) \|$", page, re.M
    )
    result = json.loads((ROOT / "benchmarks" / "results" / "recipes.json").read_text())
    shown = {
        (data, model.lower(), name): (int(epochs), forces, energies)
        for data, model, name, epochs, forces, energies in table
    }
    measured = {
        (data, model, name): (
            row["epochs"],
            f"{row['test_force_mae_mev_per_a']:.3g}",
            f"{row['test_energy_mae_mev_per_atom']:.3g}",
        )
        for data, models in result.items()
        for model, recipes in models.items()
        for name, row in recipes.items()
    }
    assert shown == measured
