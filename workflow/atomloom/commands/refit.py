"""Refit of a sweep: train its best trial on training and validation rows, and evaluate it on the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atomloom.commands.options import Prepare
from atomloom.commands.trials import Job, Log, outcomes, sweep_of
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths
from atomloom.reports.formats import plural
from atomloom.store.files import read_json, write_sealed
from atomloom.sweeps.progress import read_progress
from atomloom.sweeps.refit import Refit, refits
from atomloom.sweeps.rounds import TODO, Result, Trial, rounds
from atomloom.sweeps.runs import paths_at, paths_of
from atomloom.sweeps.space import Point
from atomloom.sweeps.table import Outcome, best_trial

REFIT = "refit.json"
"""File of a sweep's folder that says what came of its refit."""


@dataclass(frozen=True)
class Refitted:
    """Outcome of one run of a refit."""

    trial: int
    """Number of the trial whose values it has."""
    values: Point
    """Its seed, or the fold that is its test set."""
    point: Point
    """All its values."""
    run: str
    """Run key."""
    epochs: int
    """Epochs trained."""
    best_epochs: list[int]
    """Best epochs of the trial's runs, of which it trained the median."""
    errors: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Target -> test set -> metrics; empty where there is no test set."""
    reason: str = ""
    """Reason of a failure."""


def read_refit(paths: RunPaths, best: Outcome | None) -> list[Refitted]:
    """The runs of a sweep's refit; none where no trial was trained to the end.

    Raises:
        AtomloomError: when the file is missing, damaged or of another trial.
    """
    file = paths.sweep / REFIT
    if file.exists() and not refit_stands(paths, best):
        raise AtomloomError(
            "the refit is not of the best trial, or of an older version", where=file, todo=TODO
        )
    return [Refitted(**run) for run in read_json(file, "runs", todo=TODO)["runs"]]


def refit_stands(paths: RunPaths, best: Outcome | None) -> bool:
    """Whether the refit that is there is the one of the best trial, as the config in use has it.

    Raises:
        AtomloomError: when its file is damaged.
    """
    if not (paths.sweep / REFIT).exists():
        return False
    runs = read_json(paths.sweep / REFIT, "runs", todo=TODO)["runs"]
    if best is None or not runs:
        return best is None and not runs
    return all(
        # older files have no `point`
        run["trial"] == best[0].number
        and "point" in run
        and paths_at(paths, run["point"]).run_key == run["run"]
        for run in runs
    )


def refit_best(paths: RunPaths, threads: int, log: Log, prepare: Prepare) -> Path:
    """Train and evaluate the refit of a sweep whose trials are there, and write what came of it.

    A refit that fails is a result like any other: it says why.

    Args:
        paths: of the base config.
        threads: CPU threads.
        log: takes one line at a time.
        prepare: makes what the training of a config needs.

    Raises:
        AtomloomError: when a trial's result is missing.
    """
    sweep = sweep_of(paths)
    best = best_trial(outcomes(paths, range(rounds(sweep))))
    runs: list[Refitted] = []
    if best is not None:
        trial, results, _ = best
        runs.extend(
            _refitted(paths, refit, trial.number, threads, log, prepare)
            for refit in refits(paths.config, trial, results, _rates(paths, trial, results))
        )
    path = paths.sweep / REFIT
    write_sealed(path, {"runs": [asdict(run) for run in runs]})
    return path


def _rates(paths: RunPaths, trial: Trial, results: Sequence[Result]) -> list[list[float]]:
    """Learning rate by epoch, of each run of a trial whose rates follow from its validation.

    Raises:
        AtomloomError: when a run is not there any more.
    """
    found = []
    for repeat, result in zip(trial.repeats, results, strict=True):
        own = paths_of(paths, trial, repeat)
        if own.config.training.scheduler != "plateau":
            continue
        progress = read_progress(own.run, result.epochs, own.config.training.last_epoch)
        if progress is None:
            raise AtomloomError(
                "the run of the best trial is not there any more, and with it the epochs at which its "
                "learning rate fell",
                where=own.run,
                todo=f"remove {paths.sweep / 'trials'} and run the sweep again, which trains that run alone",
            )
        found.append(progress.history["learning_rate"])
    return found


def _refitted(
    paths: RunPaths,
    refit: Refit,
    trial: int,
    threads: int,
    log: Log,
    prepare: Prepare,
) -> Refitted:
    own = prepare(refit.config, log)
    job = Job(paths, own, threads, log)
    reason = job.train_to(refit.stop_after)
    if not reason and not (own.run / "metrics.json").exists():
        reason = job.call("evaluate")
    said = Refitted(
        trial,
        refit.values,
        refit.point,
        own.run_key,
        refit.stop_after,
        list(refit.best_epochs),
        {} if reason else _test_errors(own.run),
        reason,
    )
    log(
        f"refit of trial {trial}: {reason}"
        if reason
        else f"refit of trial {trial}: {plural(said.epochs, 'epoch')} on training and validation rows"
    )
    return said


def _test_errors(run: Path) -> dict[str, dict[str, dict[str, Any]]]:
    metrics = read_json(run / "metrics.json")
    return {
        target: {name: errors for name, errors in splits.items() if name != "train"}
        for target, splits in metrics.items()
    }
