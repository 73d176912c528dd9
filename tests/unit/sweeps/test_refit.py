"""Refits: what they are trained on, for how long, and that folds share one."""

from __future__ import annotations

from atomloom.config import Config, parse_config
from atomloom.sweeps.refit import refits
from atomloom.sweeps.rounds import Repeat, Result, Trial

RATES = [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def base(sweep: dict, **sections) -> Config:
    dataset = {"source": "a.cif", "target": "gap", "name": "x"}
    return parse_config(
        {"dataset": dataset, "sweep": {"parameters": {"model.width": [8]}, **sweep}, **sections}
    )


def refitted(config: Config, *best_epochs: int, rates: list[float] = RATES):
    repeats = tuple(Repeat(values, "", "", "", "") for values in config.sweep.repeats)
    trial = Trial(3, {"model.width": 16}, repeats)
    results = [Result(3, "finished", best_epoch=epoch) for epoch in best_epochs]
    return refits(config, trial, results, [rates] * len(results))


def test_a_refit_has_no_validation_and_stops_after_the_best_epoch_of_the_same_schedule():
    config = base({}, training={"epochs": 9, "early_stopping": 2})
    (refit,) = refitted(config, 4)
    assert refit.config.model.width == 16
    assert not refit.config.split.validation
    assert refit.config.training.early_stopping is None
    assert (refit.config.training.epochs, refit.config.training.last_epoch) == (9, 4)
    assert refit.config.sweep is None
    (whole,) = refitted(config, 9)
    assert whole.config.training.stop_after is None


def test_seeds_have_a_refit_each_and_folds_of_a_cross_validation_share_theirs():
    config = base({"seeds": [4, 5], "folds": 3}, training={"epochs": 9})
    found = refitted(config, 7, 2, 4, 9, 9, 1)
    assert [refit.values for refit in found] == [{"training.seed": 4}, {"training.seed": 5}]
    assert [refit.stop_after for refit in found] == [4, 9]
    assert found[0].best_epochs == (2, 4, 7)
    assert all(refit.config.split.val_folds is None for refit in found)
    listed = base(
        {"folds": [0, 1]}, split={"kind": "folds", "folds_file": "f.json"}, training={"epochs": 9}
    )
    assert [refit.config.split.fold for refit in refitted(listed, 3, 5)] == [0, 1]


def test_the_rate_of_plateau_falls_where_it_fell_in_the_trial():
    config = base({}, training={"epochs": 6, "scheduler": "plateau"})
    (refit,) = refitted(config, 4)
    assert refit.config.training.scheduler == "multistep"
    assert refit.config.training.milestones == [2]
    (early,) = refitted(config, 2)
    assert early.config.training.scheduler == "constant"
