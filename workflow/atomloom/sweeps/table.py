"""The table of a sweep: one row per trial, the best of them, and what each swept key is worth.

Nothing in it depends on when or how fast a trial ran, so that a sweep that was killed and run again
ends with the same bytes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from atomloom.config.sweep import Sweep
from atomloom.sweeps.rounds import Result, Trial

Outcome = tuple[Trial, Sequence[Result], float | None]
"""A trial, the results of its runs in the last rung that it came to, and their mean; None where a run
failed or has no value."""
OF_THE_LOSS = (
    *("training.loss", "training.huber_delta", "training.start_from", "training.log_targets"),
    *("training.potential.energy_", "training.potential.forces_w", "training.potential.stress_w"),
)
"""Keys, or how they begin, that may change what the loss is in."""


def table_of(done: Sequence[Outcome]) -> pd.DataFrame:
    """One row per trial.

    Columns: trial, status (finished, stopped, failed), value (mean over its runs), std (of their values,
    sample deviation; NaN for one run), runs, epochs (of all runs together), best_epoch (of the first
    run), one column per swept key, run (keys, joined by commas), reason.
    """
    keys = swept_keys([trial for trial, _, _ in done])
    rows = []
    for trial, results, value in done:
        values = [result.value for result in results if result.value is not None]
        rows.append(
            {
                "trial": trial.number,
                "status": status_of(results),
                "value": math.nan if value is None else value,
                "std": statistics.stdev(values)
                if value is not None and len(values) > 1
                else math.nan,
                "runs": len(results),
                "epochs": sum(result.epochs for result in results),
                "best_epoch": results[0].best_epoch,
                **dict.fromkeys(keys),
                "run": ",".join(result.run for result in results if result.run),
                "reason": "; ".join(dict.fromkeys(r.reason for r in results if r.reason)),
            }
        )
    frame = pd.DataFrame(rows)
    for key in keys:
        frame[key] = _column([trial.point.get(key) for trial, _, _ in done])
    return frame


def swept_keys(trials: Sequence[Trial]) -> list[str]:
    """All keys that some trial sets, in the order in which they first come."""
    return list(dict.fromkeys(key for trial in trials for key in trial.point))


def status_of(results: Sequence[Result]) -> str:
    """Status of a trial by its runs."""
    for status in ("failed", "stopped"):
        if any(result.status == status for result in results):
            return status
    return "finished"


def best_trial(done: Sequence[Outcome]) -> Outcome | None:
    """The finished trial of the least value; of equal ones the first. None where none finished."""
    finished = [o for o in done if o[2] is not None and status_of(o[1]) == "finished"]
    return min(finished, key=lambda o: (o[2], o[0].number), default=None)


def importance(sweep: Sweep, done: Sequence[Outcome]) -> dict[str, float]:
    """Share of each swept key in the variance of the values, by fANOVA (Hutter et al., ICML 2014).

    Of trials that set all keys alone, and by what they were when all had come equally far: at the end of the
    first rung of a halved sweep. Empty where these are too few to tell, or Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        return {}
    keys = swept_keys([trial for trial, _, _ in done])
    full = [
        (trial.point, value)
        for trial, results, last in done
        if (value := _equally_far(sweep, results, last)) is not None
        and all(key in trial.point for key in keys)
    ]
    if len(full) < 4 or len({value for _, value in full}) < 2:
        return {}
    choices = {key: list(dict.fromkeys(json.dumps(p[key]) for p, _ in full)) for key in keys}
    told = [key for key in keys if len(choices[key]) > 1]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for point, value in full:
        spaces: dict[str, Any] = {}
        params: dict[str, Any] = {}
        for key in told:
            spaces[key], params[key] = _dimension(sweep, key, point[key], choices[key])
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=value))
    if not told:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except ImportError:
        return {}
    return {key: float(found[key]) for key in sorted(found, key=lambda key: (-found[key], key))}


def _equally_far(sweep: Sweep, results: Sequence[Result], last: float | None) -> float | None:
    """Value of a trial when all trials had come as far as it; `last` is that at its own end."""
    if sweep.halving is None or last is None:
        return last
    curves = [result.curve[: sweep.halving.min_epochs] for result in results]
    least = [min((v for v in curve if v is not None), default=math.inf) for curve in curves]
    value = math.fsum(least) / len(least)
    return value if math.isfinite(value) else None


def _dimension(sweep: Sweep, key: str, value: Any, choices: Sequence[str]) -> tuple[Any, Any]:
    """A key as Optuna knows it: numbers as numbers, everything else by its place in a list."""
    import optuna

    axis = sweep.parameters.get(key)
    if axis is None or axis.values:
        numbers = [json.loads(choice) for choice in choices]
        if all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers):
            return optuna.distributions.FloatDistribution(min(numbers), max(numbers)), float(value)
        space = optuna.distributions.CategoricalDistribution(tuple(range(len(choices))))
        return space, choices.index(json.dumps(value))
    low, high = map(float, axis.bounds)
    return optuna.distributions.FloatDistribution(low, high, log=axis.log), float(value)


def _column(values: Sequence[Any]) -> pd.Series:
    """Values of a key: numbers where all are, else text as in a config."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known):
        if len(known) == len(values) and all(isinstance(v, int) for v in known):
            return pd.Series(values, dtype="int64")
        return pd.Series([math.nan if v is None else v for v in values], dtype=float)
    texts = [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
    return pd.Series(texts, dtype=object)


def curves(done: Sequence[Outcome]) -> Mapping[int, list[float | None]]:
    """Trial -> the validation figure of each epoch of its first run."""
    return {trial.number: list(results[0].curve) for trial, results, _ in done}


def keys_of_the_loss(metric: str, points: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys that differ between trials and may change what the loss is in, if that is what is minimised."""
    known: dict[str, set[str]] = {}
    for point in points:
        for key, value in point.items():
            known.setdefault(key, set()).add(repr(value))
    changing = [key for key, values in known.items() if len(values) > 1]
    return sorted(n for n in changing if metric == "val_loss" and n.startswith(OF_THE_LOSS))
