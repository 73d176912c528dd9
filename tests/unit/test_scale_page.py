"""The figures of docs/scale.md are those of its result, and what they come to follows from what was measured."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from benchmarks.common.extrapolation import (
    MARK,
    digits,
    duration,
    extrapolate,
    line,
    named_tables,
    size,
    tables,
    with_tables,
)
from benchmarks.common.results import rounded

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
RESULT = json.loads((ROOT / "benchmarks" / "results" / "growth.json").read_text())


def test_every_table_of_the_page_is_that_of_the_result():
    assert sorted(named_tables(PAGE)) == sorted(tables(RESULT))
    assert with_tables(PAGE, RESULT) == PAGE


def test_another_measurement_makes_another_page():
    other = copy.deepcopy(RESULT)
    for row in other["extrapolated"]:
        row["plan"]["mb"] *= 3
    assert with_tables(PAGE, other) != PAGE


def test_extrapolated_costs_follow_from_the_measured_ones():
    assert rounded(extrapolate(RESULT)) == RESULT["extrapolated"]


def test_the_text_of_the_page_has_no_figure_of_its_own():
    text = re.sub(r"`[^`]*`|```.*?```", "", MARK.sub("", PAGE), flags=re.S)
    text = re.sub(r"^\d\. |mp36k", "", text, flags=re.M)
    assert set(re.findall(r"\d+", text)) <= {"1", "10", "100"}


def test_a_straight_line_is_found_by_the_last_two_sizes():
    rows = [{"n": 1, "a": {"s": 900.0}}, {"n": 10, "a": {"s": 25.0}}, {"n": 30, "a": {"s": 65.0}}]
    assert line(rows, "n", "a", "s") == (pytest.approx(5.0), pytest.approx(2.0))


def test_a_cost_that_falls_is_taken_as_constant():
    assert line([{"n": 1, "s": 3.0}, {"n": 2, "s": 2.0}], "n", "s") == (2.0, 0.0)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (digits(0.1234), "0.12"),
        (digits(9.96), "10"),
        (digits(12_345.0), "12,000"),
        (duration(119.0), "120 s"),
        (duration(121.0), "2 min"),
        (duration(7_300.0), "2 h"),
        (duration(1e6), "12 days"),
        (size(950.0), "950 B"),
        (size(1.23e10), "12 GB"),
        (size(4.56e12), "4.6 TB"),
    ],
)
def test_figures_are_shown_with_two_digits_in_a_unit_that_suits(shown, text):
    assert shown == text
