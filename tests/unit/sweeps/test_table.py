"""The table of a sweep, its best trial, and the worth of its keys."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from atomloom.config.sweep import Sweep
from atomloom.sweeps.rounds import Repeat, Result, Trial
from atomloom.sweeps.table import best_trial, importance, table_of


def outcome(number: int, point: dict, values: list[float | None], status: str = "finished"):
    repeats = tuple(Repeat({}, f"run{number}{i}", "d", "g", "i") for i in range(len(values)))
    results = [
        Result(
            number, status if v is not None else "failed", 5, v, 3, "" if v else "no", r.run, [v]
        )
        for v, r in zip(values, repeats, strict=True)
    ]
    value = None if None in values else sum(values) / len(values)
    return Trial(number, point, repeats), results, value


def test_a_row_has_mean_and_deviation_of_its_runs():
    table = table_of([outcome(0, {"model.width": 8}, [1.0, 3.0])])
    row = table.iloc[0]
    assert row["value"] == 2.0
    assert row["std"] == pytest.approx(math.sqrt(2.0))
    assert row["run"] == "run00,run01"
    assert row["epochs"] == 10
    assert row["model.width"] == 8


def test_a_failed_trial_stands_in_the_table_with_its_reason():
    table = table_of(
        [outcome(0, {"model.width": 8}, [1.0]), outcome(1, {"model.width": 9}, [None])]
    )
    assert list(table["status"]) == ["finished", "failed"]
    assert np.isnan(table["value"][1])
    assert table["reason"][1] == "no"


def test_a_key_that_only_some_trials_set_is_empty_elsewhere():
    table = table_of([outcome(0, {"a.x": 1}, [1.0]), outcome(1, {"a.y": "on"}, [2.0])])
    assert np.isnan(table["a.x"][1])
    assert table["a.y"][0] is None


def test_the_best_is_the_least_of_those_trained_to_the_end():
    done = [
        outcome(0, {"a.x": 1}, [0.5]),
        outcome(1, {"a.x": 2}, [0.1], "stopped"),
        outcome(2, {"a.x": 3}, [0.4]),
        outcome(3, {"a.x": 4}, [None]),
        outcome(4, {"a.x": 5}, [0.4]),
    ]
    assert best_trial(done)[0].number == 2
    assert best_trial(done[1:2]) is None


def test_the_key_that_decides_is_the_important_one():
    axes = {
        "training.learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
        "model.width": [8, 16],
    }
    sweep = Sweep.model_validate({"method": "random", "parameters": axes})
    draw = np.random.default_rng(0)
    done = []
    for number in range(24):
        rate = float(10 ** draw.uniform(-4, -2))
        point = {"training.learning_rate": rate, "model.width": int(draw.choice([8, 16]))}
        done.append(outcome(number, point, [abs(math.log10(rate) + 3)]))
    found = importance(sweep, done)
    assert next(iter(found)) == "training.learning_rate"
    assert found["training.learning_rate"] > 0.8
    assert sum(found.values()) == pytest.approx(1.0)
    assert importance(sweep, done) == found


def test_too_few_trials_say_nothing_of_importance():
    sweep = Sweep.model_validate({"parameters": {"model.width": [8, 16]}})
    assert importance(sweep, [outcome(0, {"model.width": 8}, [1.0])]) == {}


def test_importance_is_judged_where_all_trials_came_equally_far():
    sweep = Sweep.model_validate(
        {
            "parameters": {"model.width": [8, 16], "model.layers": [1, 2]},
            "halving": {"min_epochs": 2},
        }
    )
    done = []
    for number in range(8):
        width, layers = (8, 16)[number % 2], (1, 2)[number // 2 % 2]
        trial, results, value = outcome(
            number, {"model.width": width, "model.layers": layers}, [float(layers)]
        )
        # After two epochs the width decides; what came later, of some trials, the layers.
        curve = [9.0, float(width), *([float(layers)] if number < 4 else [])]
        done.append((trial, [replace(result, curve=curve) for result in results], value))
    assert next(iter(importance(sweep, done))) == "model.width"


def test_the_row_of_a_trial_that_could_not_run_names_no_run():
    refused = [Result(0, "failed", reason="too small")] * 2
    table = table_of([(Trial(0, {"model.width": 0}, (), "too small"), refused, None)])
    assert (table["run"][0], table["runs"][0], table["reason"][0]) == ("", 2, "too small")
