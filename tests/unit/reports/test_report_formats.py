"""Numbers are written as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomloom.reports import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.043219, "0.0432"),
        (1.2, "1.20"),
        (9.9996, "10.0"),
        (12345.6, "12,346"),
        (1234567, "1,234,567"),
        (-3, "\u22123"),
        (-0.5, "\u22120.500"),
        (0.0, "0"),
        (4.2e-7, "4.20 \u00d7 10⁻⁷"),
        (3e9, "3.00 \u00d7 10⁹"),
        (None, "\u2013"),
        (math.nan, "\u2013"),
        (math.inf, "\u2013"),
        ("eight", "\u2013"),
    ],
)
def test_numbers_keep_three_significant_digits_and_whole_numbers_all(value, text):
    assert formats.number(value) == text


@given(st.floats(1e-4, 9e6))
def test_a_written_number_is_within_half_a_unit_of_its_third_digit(value):
    assert float(formats.number(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.001, "0.001"), (0.25, "0.25"), (10.0, "10"), (100, "100"), (1e-6, "1 \u00d7 10⁻⁶")],
)
def test_chosen_numbers_have_no_trailing_zeros(value, text):
    assert formats.brief(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (125, "2 min 05 s"),
        (7265, "2 h 01 min"),
        (90000, "1 d 01 h"),
        (None, "\u2013"),
    ],
)
def test_durations(seconds, text):
    assert formats.duration(seconds) == text


def test_shares_sizes_and_moments():
    assert formats.percent(0.0789) == "7.9 %"
    assert formats.percent(0.5) == "50 %"
    assert formats.percent(None) == formats.NONE
    assert formats.byte_size(999) == "999 B"
    assert formats.byte_size(1_300_000) == "1.30 MB"
    assert formats.moment("2026-05-01T10:02:05+00:00") == "2026-05-01 10:02 UTC"
    assert formats.moment("yesterday") == "yesterday"
    assert formats.fixed(0.01, 3, sign=True) == "+0.010"
    assert formats.fixed(-0.0001, 2) == "0.00"


def test_decimals_follow_the_size_of_an_error():
    assert [formats.decimals_for(v) for v in (0.0431, 0.6, 28.76, 4321)] == [4, 3, 1, 0]
    assert formats.decimals_for(None) == 3


def test_numbers_of_many_digits_are_powers_of_ten_whatever_their_decimals():
    assert formats.fixed(-9.01e25, 3) == f"{formats.MINUS}9.01 {formats.TIMES} 10\u00b2\u2075"
    assert formats.fixed(3.2e12, 1, sign=True) == f"+3.20 {formats.TIMES} 10\u00b9\u00b2"
    assert formats.percent(3.1e11) == f"3.10 {formats.TIMES} 10\u00b9\u00b3 %"
    assert formats.fixed(9_999_999, 0) == "9,999,999"


def test_ends_of_bins_have_as_many_digits_as_tell_them_apart():
    assert formats.numbers_apart([-98.11, -98.06, -97.9]) == [
        "\u221298.11",
        "\u221298.06",
        "\u221297.90",
    ]
    assert formats.numbers_apart([1.0, 2.0, 2.0]) == ["1.00", "2.00", "2.00"]
