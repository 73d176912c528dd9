"""Fields that came later, or have another name now, leave the keys of before as they were."""

from __future__ import annotations

import warnings

import pytest
from pydantic import Field, ValidationError

from atomloom import cli, former
from atomloom.config import load_config, parse_config
from atomloom.config.base import Section, keyed_when_set, renamed, unkeyed
from atomloom.errors import AtomloomError
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


DATASET = {"name": "x", "source": "s", "target": "energy"}
RENAMED = [
    ("dataset.chunks.least", "min", 7),
    ("dataset.chunks.greatest", "max", 5000),
    ("model.least_distance", "min_distance", 0.3),
    ("training.potential.force_every", "force_resample_every", 4),
    ("training.potential.force_least", "force_min_structures", 5),
]
KEYS = ["cf4f7a63db472421", "6e76a9f9ab6b7e34", "65a179c2a08d9788"]
"""Of dataset, model and training with these values, before the keys had other names."""


def content_with(*settings: tuple[str, object]) -> dict:
    """A config in which keys are set at their places."""
    content = {
        "dataset": {**DATASET, "chunks": {}},
        "model": {"name": "chebyshev", "species": ["Cu"]},
        "training": {"potential": {}},
    }
    for place, value in settings:
        *sections, key = place.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[key] = value
    return content


@pytest.mark.parametrize(("before", "name", "value"), RENAMED)
def test_a_config_may_use_the_former_name_of_a_key(before, name, value):
    now = f"{before.rpartition('.')[0]}.{name}"
    with pytest.warns(FutureWarning, match=f"{before} is now {now};") as told:
        config = parse_config(content_with((before, value)))
    assert len(told) == 1
    assert config == parse_config(content_with((now, value)))
    with pytest.raises(AtomloomError, match=f"{now}: "), pytest.warns(FutureWarning):
        parse_config(content_with((before, True)))
    with pytest.raises(AtomloomError, match=f"{before} is the former name of {name}: give one"):
        parse_config(content_with((before, value), (now, value)))


def test_an_option_goes_over_a_file_that_writes_the_default_under_the_other_name():
    """Snakemake merges them into one mapping, in an order of its own."""
    for one, other in (("least", "min"), ("min", "least")):
        for chunks in ({one: 20, other: None}, {other: None, one: 20}):
            with pytest.warns(FutureWarning, match="chunks.least is now dataset.chunks.min"):
                config = parse_config({"dataset": {**DATASET, "chunks": chunks}})
            assert config.dataset.chunks.min == 20


def test_keys_of_before_hold():
    settings = [(f"{before.rpartition('.')[0]}.{name}", value) for before, name, value in RENAMED]
    config = parse_config(content_with(*settings))
    assert [key(section) for section in (config.dataset, config.model, config.training)] == KEYS


def test_a_file_goes_over_one_that_uses_the_other_name(tmp_path):
    files = {}
    for name in ("least", "min"):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(
            f"dataset: {{name: x, source: s, target: y, chunks: {{{name}: {len(name)}}}}}"
        )
    with pytest.warns(FutureWarning, match="chunks.least is now dataset.chunks.min"):
        assert load_config(files["least"], files["min"]).dataset.chunks.min == 3
    with pytest.warns(FutureWarning):
        assert load_config(files["min"], files["least"]).dataset.chunks.min == 5


def test_a_file_may_name_a_key_of_a_model_that_another_file_names(tmp_path):
    model, distance = tmp_path / "model.yaml", tmp_path / "distance.yaml"
    model.write_text(
        "dataset: {name: x, source: s, target: energy}\nmodel: {name: chebyshev, species: [Cu]}"
    )
    distance.write_text("model: {least_distance: 0.3}")
    with pytest.warns(FutureWarning, match=r"model.least_distance is now model.min_distance"):
        assert load_config(model, distance).model.min_distance == 0.3


def test_a_command_says_former_names_in_a_line_each(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(
        "dataset: {name: x, source: nowhere, target: y, chunks: {least: 3, greatest: 5000}}"
    )
    assert cli.main(["plan", "--config", str(path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        f"atomloom plan: dataset.chunks.{name} is now dataset.chunks.{present}; "
        "the former name will be removed in the next version"
        for name, present in (("least", "min"), ("greatest", "max"))
    ]
    assert len(lines) == 3


def test_other_warnings_are_shown_as_they_were():
    said: list[str] = []

    def speak() -> None:
        with former.told_by(said.append):
            former.warn("a", "b")
            warnings.warn("something else", UserWarning, stacklevel=1)
            former.warn("a", "b")

    with pytest.warns(UserWarning, match="something else") as shown:
        speak()
    assert len(shown) == 1
    assert said == ["a is now b; the former name will be removed in the next version"]
