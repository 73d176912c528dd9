"""The `sweep` section: which values of which keys are tried, and how trials are chosen.

It is in the key of no run: a trial is the run that its own values describe, and has the key that it
would have by hand.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from atomloom.config.base import (
    MOST,
    MOST_SEED,
    Section,
    check_plain,
    keyed_when_set,
    unkeyed,
)

SWEPT = ("graph", "model", "split", "training")
"""Sections whose keys may be swept."""

Value = str | bool | int | float | None | list[Any] | dict[str, Any]


def _number(value: Any) -> Any:
    """Number for text like `1e-3`, which YAML does not take for one without a point."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d{1,3}", value):
        return float(value)
    return value


class Axis(Section):
    """The values of one key."""

    values: list[Annotated[Any, BeforeValidator(_number)]] = []
    """Values to choose from."""
    min: int | float | None = Field(default=None, ge=-1e12, le=1e12)
    """Lower bound of a range, in place of values. Between two whole numbers, whole numbers are tried."""
    max: int | float | None = Field(default=None, ge=-1e12, le=1e12)
    """Upper bound of the range, included."""
    log: bool = False
    """Whether steps in the range are those of the logarithm."""
    steps: int | None = Field(default=None, ge=2, le=MOST)
    """For `grid`: how many values of the range, both bounds included."""
    when: dict[str, Any] = {}
    """The key is only set where other swept keys have these values (or one of a list of values)."""

    @field_validator("when")
    @classmethod
    def _numbers(cls, when: dict[str, Any]) -> dict[str, Any]:
        return {
            name: [_number(item) for item in value] if isinstance(value, list) else _number(value)
            for name, value in when.items()
        }

    @model_validator(mode="after")
    def _values_or_a_range(self) -> Axis:
        if bool(self.values) == (self.min is not None or self.max is not None):
            raise ValueError("a swept key has either `values` or `min` and `max`")
        if self.values:
            if self.log or self.steps is not None:
                raise ValueError("`log` and `steps` are for a range")
            check_plain({"values": self.values})
            if any(self.values[i] in self.values[:i] for i in range(len(self.values))):
                raise ValueError("a value is named twice")
            return self
        low, high = self.bounds
        if not low < high:
            raise ValueError("a range has a `min` below its `max`")
        if self.log and low <= 0:
            raise ValueError("`log` needs a `min` above 0")
        return self

    @property
    def bounds(self) -> tuple[int | float, int | float]:
        """Both bounds of a range; ValueError where one is missing."""
        if self.min is None or self.max is None:
            raise ValueError("a range has a `min` below its `max`")
        return self.min, self.max

    @property
    def whole(self) -> bool:
        """Whether the range is one of whole numbers."""
        return isinstance(self.min, int) and isinstance(self.max, int)

    @property
    def spaced(self) -> list[Any]:
        """Values of a range at equal distances, `steps` of them, both bounds included."""
        assert self.steps is not None
        found = [self.value_at(place / (self.steps - 1)) for place in range(self.steps)]
        return list(dict.fromkeys(found))

    def value_at(self, share: float) -> Any:
        """Value at a share in [0, 1]: of a list by its place, of a range between the bounds."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = self.bounds
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(value, low), high)
        # Twelve digits: what is written down in a config is what a person would type.
        return round(value) if self.whole else float(f"{value:.12g}")

    def may_be(self, value: Any, grid: bool) -> bool:
        """Whether a trial can have this value; of a range that is drawn from, whole numbers alone can be named."""
        if self.values or grid:
            return value in (self.values or self.spaced)
        low, high = self.bounds
        number = isinstance(value, (int, float)) and low <= value <= high
        return self.whole and number and value % 1 == 0


def _axis(value: Any) -> Any:
    return {"values": value} if isinstance(value, (list, tuple)) else value


class Halving(Section):
    """Successive halving: all trials are trained for some epochs, the better ones for longer."""

    min_epochs: int = Field(default=1, ge=1, le=1_000_000)
    """Epochs of the first rung; each further rung has `factor` times as many, the last all of
    `training.epochs`. A rung is the whole run stopped early: its learning rates are those of the whole
    run, and a trial that is promoted resumes where it stopped."""
    factor: int = Field(default=3, ge=2, le=100)
    """Trials of a rung of which one, the best, goes on to the next rung."""


class Sweep(Section):
    """Runs that differ in some keys, and the best of them."""

    method: Literal["grid", "list", "random", "sobol", "tpe"] = "grid"
    """`grid`: all combinations of the values. `list`: those of `trials`. `random`, `sobol` (an evenly
    filled space: Sobol's sequence, scrambled): `count` points. `tpe`: `count` points that Optuna's
    tree-structured Parzen estimator chooses in rounds of `round`, each by the results of those before."""
    parameters: dict[str, Annotated[Axis, BeforeValidator(_axis)]] = {}
    """Key -> its values: `training.learning_rate: {min: 1e-4, max: 1e-2, log: true}`, `model.width:
    [64, 128]`. Keys of the sections graph, model, split and training."""
    trials: list[dict[str, Any]] = []
    """For `list`: the trials, each a mapping of keys to values."""
    count: int = Field(default=20, ge=1, le=100_000)
    """Trials of `random`, `sobol` and `tpe`."""
    round: int = Field(default=4, ge=1, le=10_000)
    """For `tpe`: trials chosen at a time, which can run at the same time."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of the choice."""
    seeds: list[Annotated[int, Field(ge=0, le=MOST_SEED)]] = []
    """Values of `training.seed`: each trial is trained with every one, and counts by the mean."""
    folds: Annotated[int, Field(ge=2, le=1000)] | list[Annotated[int, Field(ge=0, le=MOST)]] = []
    """Cross-validation, likewise. A number: the rows outside the test set are divided into so many folds
    (`split.val_folds`), each of which is the validation set once. A list: values of `split.fold`, each of
    which is a test set."""
    metric: str | None = Field(default=None, pattern=r"val_(loss|mae(_.+)?)")
    """Minimised figure: a validation column of history.csv, `val_loss`, `val_mae` or `val_mae_NAME`, at the
    epoch that the model file holds. null: `val_mae` of a single target, else `val_loss`. Never an error of
    the test set."""
    halving: Halving | None = None
    """Stop trials that lag behind; null: train all to the end."""
    ensemble: int = Field(default=0, ge=0, le=100)
    """Make a committee of so many of the best trials."""
    refit: Literal["best"] | None = keyed_when_set(None)
    """`best`: train the best trial once more, on training and validation rows together, and evaluate it on
    the test set. Without a validation set no epoch can be chosen: it stops after the epoch that was best in
    the trial."""
    threads: int = unkeyed(1, ge=1, le=1024)
    """CPU threads of a trial; as many trials run at a time as the cores allow."""
    gpus: float | None = unkeyed(None, ge=0.01, le=64)
    """GPUs of a trial, of which no other trial on the machine has any; below 1, the share of one that it has
    (0.5: two trials at a time on each). null: `training.devices`. Not with `training.device: cpu`."""
    retries: int = unkeyed(1, ge=0, le=20)
    """Number of times a trial that dies is started again (it resumes) before it counts as failed."""

    @field_validator("parameters", "trials")
    @classmethod
    def _known_sections(cls, value: Any) -> Any:
        for names in [value] if isinstance(value, dict) else value:
            for name in names:
                section, _, key = name.partition(".")
                if section not in SWEPT or not key:
                    raise ValueError(
                        f"`{name}` cannot be swept: name a key of {', '.join(SWEPT)}, such as "
                        "training.learning_rate"
                    )
        if isinstance(value, dict):
            return value
        return [{name: _number(item) for name, item in trial.items()} for trial in value]

    @model_validator(mode="after")
    def _complete(self) -> Sweep:
        if self.method == "list":
            if not self.trials or self.parameters:
                raise ValueError("method: list has `trials`, each a mapping, and no `parameters`")
        elif self.trials:
            raise ValueError(f"method: {self.method} has `parameters` and no list of `trials`")
        elif self.method != "grid" and not self.parameters:
            raise ValueError(f"method: {self.method} needs `parameters`")
        for name, axis in self.parameters.items():
            for other in axis.when:
                if other not in self.parameters or list(self.parameters).index(other) >= list(
                    self.parameters
                ).index(name):
                    raise ValueError(f"{name}: `when` names {other}, which is not swept before it")
            if self.method == "grid" and not axis.values and axis.steps is None:
                raise ValueError(f"{name}: a grid takes `values`, or `steps` of a range")
            for other, wanted in axis.when.items():
                self._check_condition(name, other, wanted)
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            raise ValueError("gpus is a whole number, or a share of one GPU")
        for repeat in self.repeats:
            for name in repeat:
                if name in self.parameters or any(name in trial for trial in self.trials):
                    raise ValueError(f"{name} is swept twice")
        for keys in (self.parameters, *self.trials):
            names = list(keys)
            for place, name in enumerate(names):
                for inner in names[:place]:
                    if inner.startswith(f"{name}."):
                        raise ValueError(f"{inner} is part of {name}: name it after that")
        listed = {"seeds": self.seeds, "folds": self.folds}
        for name, values in listed.items():
            if isinstance(values, list) and len(set(values)) < len(values):
                raise ValueError(f"a value of {name} is named twice")
        for name in ("training.epochs", "training.stop_after"):
            if self.halving and any(name in keys for keys in (self.parameters, *self.trials)):
                raise ValueError(f"halving and a swept {name} exclude each other")
        return self

    def _check_condition(self, name: str, other: str, wanted: Any) -> None:
        axis, grid = self.parameters[other], self.method == "grid"
        if axis.may_be(wanted, grid):
            return
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if not axis.may_be(value, grid):
                raise ValueError(f"{name}: `when` names {value!r}, a value that {other} never has")
        if wanted == []:
            raise ValueError(f"{name}: `when` names no value of {other}")

    @property
    def repeats(self) -> list[dict[str, Any]]:
        """Keys and values of each run of a trial: seeds, folds, or both; one without any where there are none."""
        seeds = [{"training.seed": seed} for seed in self.seeds] or [{}]
        if isinstance(self.folds, int):
            count = self.folds
            folds = [{"split.val_folds": count, "split.val_fold": fold} for fold in range(count)]
        else:
            folds = [{"split.fold": fold} for fold in self.folds] or [{}]
        return [{**seed, **fold} for seed, fold in itertools.product(seeds, folds)]
