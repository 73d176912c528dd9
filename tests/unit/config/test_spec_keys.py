"""Fields that came later, or have another name now, leave the keys of before as they were."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from atomloom.config.base import Section, keyed_when_set, renamed, unkeyed
from atomloom.store.keys import short_hash


class Before(Section):
    """A section as it once was."""

    width: int = 8
    """A width."""
    least: int | None = Field(default=None, ge=1)
    """A bound."""


class Inner(Section):
    """A section that came later."""

    weight: float = 1.0
    """A weight."""
    workers: int = unkeyed(1)
    """Processes."""


class Now(Section):
    """The section now."""

    width: int = 8
    """A width."""
    min: int | None = renamed("least", None, ge=1)
    """A bound."""
    weights: dict[str, float] = keyed_when_set({})
    """Weights."""
    inner: Inner = keyed_when_set(Inner())
    """More of them."""


def key(section: Section) -> str:
    return short_hash(section.key_content())


def test_a_field_that_came_later_is_in_no_key_until_it_is_set():
    assert key(Now()) == key(Now(weights={})) == key(Before())
    assert key(Now(weights={"dipole": 2.0})) != key(Before())
    assert key(Now(weights={"dipole": 2.0})) != key(Now(weights={"dipole": 3.0}))
    assert key(Now(inner=Inner(workers=4))) == key(Before())
    assert key(Now(inner=Inner(weight=4))) != key(Before())


def test_a_renamed_field_is_in_keys_under_its_former_name():
    assert key(Now(min=3)) == key(Before(least=3)) != key(Before())


def test_a_former_name_works_and_is_told_the_present_one():
    with pytest.warns(FutureWarning, match=r"^Now.least is now Now.min; .* next version$"):
        section = Now(least=3)
    assert section == Now(min=3)
    assert section.model_dump()["min"] == 3


def test_a_field_under_both_of_its_names_is_refused():
    with pytest.raises(ValidationError, match="least is the former name of min: give one"):
        Now(least=3, min=4)


def test_bounds_hold_for_a_former_name_too():
    with pytest.raises(ValidationError, match="greater than or equal to 1"), pytest.warns():
        Now(least=0)
