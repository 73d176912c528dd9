"""Jobs ask for what was measured for just this work, else for the defaults, and for more at each attempt."""

from __future__ import annotations

import pytest

from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.resources import (
    DEFAULTS,
    FREE,
    Ask,
    read_resources,
    resource_text,
    trials_cost_alike,
    work_of,
)

BASE = {"dataset": {"name": "x", "source": "data", "target": "energy"}}
ASKS = {
    "convert": Ask(700, 10),
    "graphs": Ask(800, 10),
    "split": Ask(900, 15),
    "train": Ask(3000, 200, cpus=3),
}


def config(**sections):
    return parse_config({**BASE, **sections})


@pytest.fixture
def told():
    return []


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "resources.yaml"
    path.write_text(resource_text(1000, ASKS, config()))
    return path


def test_each_attempt_asks_for_twice_as_much_within_the_time_that_there_is():
    ask = Ask(500, 400)
    assert [ask.memory(attempt) for attempt in (1, 2, 3)] == [500, 1000, 2000]
    assert [ask.minutes(attempt, 1000) for attempt in (1, 2, 3)] == [400, 800, 1000]
    assert ask.memory(10**6) < 10**9


def test_what_was_written_is_read_and_the_rest_stays_as_usual(file, told):
    assert read_resources(file, config(), 1000, told.append) == DEFAULTS | ASKS
    assert not told


def test_without_a_file_all_is_as_usual(tmp_path, told):
    assert read_resources(tmp_path / "none.yaml", config(), 5, told.append) == DEFAULTS
    assert not told


@pytest.mark.parametrize(
    ("sections", "stale"),
    [
        ({"training": {"learning_rate": 1e-4, "seed": 7}}, set()),
        ({"training": {"batch": {"structures": 7}}}, {"train"}),
        ({"training": {"gradient_checkpointing": True}}, {"train"}),
        ({"model": {"name": "icomformer", "width": 8}}, {"train"}),
        ({"graph": {"cutoff": 5.0}}, {"graphs", "train"}),
        ({"dataset": {**BASE["dataset"], "chunks": {"mean": 7}}}, {"convert", "graphs"}),
        ({"dataset": {**BASE["dataset"], "name": "y", "unit": "eV"}}, set()),
    ],
)
def test_what_was_measured_of_other_work_is_not_used(file, told, sections, stale):
    asks = read_resources(file, config(**sections), 1000, told.append)
    assert {rule for rule in ASKS if asks[rule] == DEFAULTS[rule]} == stale
    assert bool(told) == bool(stale)
    assert all(rule in told[0] for rule in stale)


def test_a_data_set_that_has_grown_is_not_what_was_measured(file, told):
    assert read_resources(file, config(), 1400, told.append)["split"] == ASKS["split"]
    assert not told
    assert read_resources(file, config(), 1600, told.append) == DEFAULTS
    assert "1,600" in told[0]


def test_entries_by_hand_hold_for_anything(tmp_path, told):
    path = tmp_path / "resources.yaml"
    path.write_text(
        "records: 1\nrules: {train: {mem_mb: 9, runtime: 8}, trein: {mem_mb: 1, runtime: 1}}"
    )
    asks = read_resources(path, config(), 10**6, told.append)
    assert asks["train"] == Ask(9, 8)
    assert any("trein" in line for line in told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("records: 1\nrules: {train: {mem_mb: 0, runtime: 1}}", "rules.train.mem_mb"),
        ("records: 1\nrules: {train: {mem_mb: 9, runtime: 1:30:00}}", "line 2: 1:30:00 is to YAML"),
        ("records: 1\nrules: {train: {runtime: 1}}", "rules.train.mem_mb"),
        ("records: 1\nrule: {}", "rule"),
        ("records: x", "records"),
        ("[]", "mapping"),
        ("records: [", "YAML"),
    ],
)
def test_a_mistake_is_one_line_with_the_file(tmp_path, text, said, told):
    path = tmp_path / "resources.yaml"
    path.write_text(text)
    with pytest.raises(AtomloomError, match=said) as error:
        read_resources(path, config(), None, told.append)
    assert "resources.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_costs_nothing_is_named_as_settings_are():
    assert set(type(config().training).model_fields) >= FREE


def test_trials_that_differ_in_the_model_cost_something_else():
    rates, widths = (
        config(sweep={"parameters": {key: [8, 16]}})
        for key in ("training.batch.structures", "model.width")
    )
    assert not trials_cost_alike(rates)
    assert not trials_cost_alike(widths)
    same = config(sweep={"parameters": {"training.learning_rate": [0.1, 0.2]}, "seeds": [1, 2]})
    assert trials_cost_alike(same)
    assert work_of(same, "trial") != work_of(widths, "trial") != work_of(rates, "trial")
