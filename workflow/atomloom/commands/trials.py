"""Trials of a sweep: choose them, train them as ordinary runs, and read what came of them.

Each step is a function from files to files, called by a rule of the workflow. A trial is trained by a
process of its own, so that one that dies is seen to have died.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from atomloom.commands.gpus import lent
from atomloom.config.sweep import Sweep
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths
from atomloom.reports.formats import plural
from atomloom.store.files import write_spec
from atomloom.sweeps.progress import Progress, read_progress
from atomloom.sweeps.rounds import (
    Repeat,
    Result,
    Slot,
    Trial,
    before,
    best_of,
    read_round,
    result_file,
    round_file,
    rounds,
    rungs,
    score,
    width,
    write_round,
)
from atomloom.sweeps.runs import paths_at, paths_of, written_config
from atomloom.sweeps.space import Point, first_points
from atomloom.sweeps.table import Outcome
from atomloom.targets import TargetSpec
from atomloom.training.run_lock import WAITING

Log = Callable[[str], None]

PR_SET_PDEATHSIG = 1
ASKED = 20
"""Points that TPE is asked for per trial wanted, before it counts as having no other."""


def sweep_of(paths: RunPaths) -> Sweep:
    """The sweep of a config.

    Raises:
        AtomloomError: when it has none.
    """
    if paths.config.sweep is None:
        raise AtomloomError("the config has no section `sweep`", todo="see docs/sweeps.md")
    return paths.config.sweep


def suggest_round(paths: RunPaths, round: int, log: Log) -> Path:
    """Choose the trials of a round, and write them with the keys of their runs.

    Raises:
        AtomloomError: when the results of the rounds before are missing, or there is no such round.
    """
    sweep = sweep_of(paths)
    _check_metric(paths.config.targets, sweep.metric)
    if not 0 <= round < rounds(sweep):
        raise AtomloomError(f"there is no round {round}", todo=f"the last is {rounds(sweep) - 1}")
    if sweep.method == "tpe":
        from atomloom.sweeps.tpe import next_points

        done = outcomes(paths, range(round))
        known = [(trial.point, value) for trial, _, value in done]
        wanted = min(sweep.round, sweep.count - round * sweep.round)
        points = islice(next_points(sweep, known), ASKED * wanted)
        trials = _each_run_once(paths, points, [trial for trial, _, _ in done], wanted)
    else:
        listed = first_points(sweep)
        wanted = sweep.count if sweep.method in ("random", "sobol") else len(listed)
        trials = _each_run_once(paths, listed, [], wanted)
    unfit = [trial for trial in trials if trial.reason]
    if len(unfit) == len(trials) and round == 0:
        raise AtomloomError(unfit[0].reason)
    path = round_file(paths.sweep, round)
    write_spec(paths.sweep, paths.sweep_spec)
    write_round(path, trials)
    log(
        f"{plural(len(trials), 'trial')}, {plural(len(sweep.repeats), 'run')} each"
        + (f"; {len(unfit):,} of them cannot be run" if unfit else "")
        + (
            f"; {wanted - len(trials):,} fewer than wanted, whose runs would be those of other trials"
            if len(trials) < wanted
            else ""
        )
    )
    return path


def _check_metric(targets: Sequence[TargetSpec], metric: str | None) -> None:
    """Refuse a metric that no history will have, before anything is trained.

    Raises:
        AtomloomError: naming those that there are.
    """
    names = [f"val_mae_{spec.reported}" for spec in targets] if len(targets) > 1 else ["val_mae"]
    if metric not in (None, "val_loss", *names):
        raise AtomloomError(
            f"there will be no `{metric}`",
            where="sweep.metric",
            todo=f"choose from {', '.join(['val_loss', *names])}",
        )


def _each_run_once(
    paths: RunPaths, points: Iterable[Point], before: Sequence[Trial], wanted: int
) -> list[Trial]:
    """Trials whose runs are no other trial's, as many as are wanted if there are: points can describe one run.

    Args:
        paths: of the base config.
        points: points in order.
        before: trials of the rounds before.
        wanted: number of trials.
    """
    seen = {json.dumps(trial.point, sort_keys=True) for trial in before}
    taken = {tuple(repeat.run for repeat in trial.repeats) for trial in before}
    found: list[Trial] = []
    for point in points:
        name = json.dumps(point, sort_keys=True)
        if name in seen:
            continue
        seen.add(name)
        trial = _trial(paths, len(before) + len(found), point)
        runs = tuple(repeat.run for repeat in trial.repeats)
        if not runs or runs not in taken:
            taken.add(runs)
            found.append(trial)
        if len(found) == wanted:
            break
    return found


def _trial(paths: RunPaths, number: int, point: Point) -> Trial:
    """A trial and its runs."""
    repeats = []
    try:
        for values in sweep_of(paths).repeats:
            own = paths_at(paths, {**point, **values})
            if own.layout.plan_folder != paths.layout.plan_folder:
                raise AtomloomError("changes which records there are, which a sweep cannot")
            keys = (own.run_key, own.dataset_key, own.layout.graph_key, own.index.name)
            repeats.append(Repeat(values, *keys))
    except AtomloomError as error:
        return Trial(number, point, (), str(error))
    return Trial(number, point, tuple(repeats))


def run_slot(paths: RunPaths, slot: Slot, threads: int, log: Log) -> Path:
    """Train what a slot calls for, up to the end of its rung, and write what came of it.

    A trial that fails is a result like any other: it says why.

    Raises:
        AtomloomError: when what it needs is missing.
    """
    sweep, epochs = sweep_of(paths), paths.config.training.epochs
    trials = read_round(round_file(paths.sweep, slot.round))
    path = result_file(paths.sweep, slot)
    trial, failed = _chosen(paths, sweep, trials, slot)
    if failed is not None:
        failed.write(path)
        return path
    repeat = trial.repeats[slot.repeat]
    own = paths_of(paths, trial, repeat)
    reach = rungs(sweep, epochs)[slot.rung] if sweep.halving else own.config.training.epochs
    job = Job(paths, own, threads, log)
    if "tensorboard" in own.config.training.loggers:
        _link(paths.sweep / "tensorboard" / f"trial-{trial.number:05d}-{slot.repeat}", own.run)
    reason = job.train_to(reach)
    if reason:
        log(f"trial {trial.number} failed: {reason}; to try it again, remove {path.parent}")
        Result(trial.number, "failed", reason=reason, run=repeat.run).write(path)
        return path
    result = _result(trial.number, repeat, _progress(own, reach), sweep.metric)
    result.write(path)
    value = "no value" if result.value is None else f"{result.value:.4g}"
    log(f"trial {trial.number}: {value} after {plural(result.epochs, 'epoch')}")
    return path


def _chosen(
    paths: RunPaths, sweep: Sweep, trials: Sequence[Trial], slot: Slot
) -> tuple[Trial, Result | None]:
    """The trial of a slot; and its result, where it has failed already."""
    if slot.rung == 0:
        trial = trials[slot.number]
        failed = Result(trial.number, "failed", reason=trial.reason) if trial.reason else None
        return trial, failed
    candidates = {
        number: [
            Result.read(result_file(paths.sweep, Slot(slot.round, slot.rung - 1, number, repeat)))
            for repeat in range(len(sweep.repeats))
        ]
        for number in before(sweep, len(trials), slot.rung, slot.number)
    }
    best = candidates[best_of(candidates)]
    trial = next(trial for trial in trials if trial.number == best[0].trial)
    if any(result.status == "failed" for result in best):
        return trial, next(result for result in best if result.status == "failed")
    return trial, None


@dataclass(frozen=True)
class Job:
    """A run of a sweep, whose stages are processes of their own."""

    sweep: RunPaths
    """Paths of the base config."""
    own: RunPaths
    """Paths of the run."""
    threads: int
    log: Log

    def train_to(self, reach: int) -> str:
        """Train it up to some epoch, unless it is; why that failed, or nothing."""
        if _progress(self.own, reach) is not None:
            return ""
        reason = self.call("train", "--until", str(reach))
        return reason or ("" if _progress(self.own, reach) else "ended without a result")

    def call(self, stage: str, *options: str) -> str:
        """Run a stage, again if it is killed; why that failed, or nothing."""
        sweep, training = sweep_of(self.sweep), self.own.config.training
        file = written_config(self.own.layout)
        command = [sys.executable, "-P", "-m", "atomloom", stage, "--config", str(file)]
        log = self.own.layout.logs / stage / f"{self.own.run_key}.log"
        command += ["--threads", str(self.threads), "--log", str(log), *options]
        wanted = training.devices if sweep.gpus is None else sweep.gpus
        for attempt in range(sweep.retries + 1):
            with lent(0 if training.device == "cpu" else wanted, self.log) as gpus:
                status, last = _run(command, {**self._names, **os.environ, **gpus})
            if status == 0:
                return ""
            if status > 0:
                return last or f"ended with status {status}"
            self.log(f"{stage} was killed by signal {-status}; attempt {attempt + 1}")
        return f"was killed by signal {-status}, {sweep.retries + 1} times"

    @property
    def _names(self) -> dict[str, str]:
        """Variables by which MLflow and Weights & Biases keep the runs of a sweep together."""
        name = f"{self.own.config.dataset.name}-{self.sweep.sweep.name}"
        return {"MLFLOW_EXPERIMENT_NAME": name, "WANDB_RUN_GROUP": name}


def _link(link: Path, run: Path) -> None:
    """Let a folder of TensorBoard's hold a run's event files under another name."""
    link.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(os.path.relpath(run / "tensorboard", link.parent), target_is_directory=True)


def _progress(own: RunPaths, reach: int) -> Progress | None:
    return read_progress(own.run, reach, own.config.training.last_epoch)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit status of a command, and the last line it said; it ends when this process does."""
    process = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    last = ""
    assert process.stderr is not None
    try:
        for line in process.stderr:
            last = line.strip() or last
            if last.endswith(WAITING):  # the one thing that must be said before the end
                print(line.rstrip(), file=sys.stderr, flush=True)
        return process.wait(), re.sub(r"^atomloom( \w+)?: ", "", last)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stderr.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _result(number: int, repeat: Repeat, progress: Progress | None, metric: str | None) -> Result:
    """Result of a run, as a sweep keeps it: if the run is stopped, with the min value so far."""
    assert progress is not None
    column = metric or ("val_mae" if "val_mae" in progress.history else "val_loss")
    if column not in progress.history:
        columns = ", ".join(name for name in progress.history if name.startswith("val_"))
        raise AtomloomError(
            f"the history has no column `{column}`",
            where="sweep.metric",
            todo=f"choose from {columns}",
        )
    curve = [value if math.isfinite(value) else None for value in progress.history[column]]
    best = progress.best_epoch
    known = [value for value in curve if value is not None]
    value = curve[best - 1] if best is not None else min(known, default=None)
    return Result(
        number,
        "stopped" if best is None else "finished",
        epochs=len(curve),
        value=value,
        best_epoch=best if best is not None else _place(curve, value) + 1,
        run=repeat.run,
        curve=curve,
    )


def _place(curve: Sequence[float | None], value: float | None) -> int:
    """First index of a value; -1 if there is none."""
    return -1 if value is None else list(curve).index(value)


def outcomes(paths: RunPaths, chosen: Sequence[int] | range) -> list[Outcome]:
    """Each trial of some rounds, the results of the last rung that it came to, and its value there."""
    sweep, epochs = sweep_of(paths), paths.config.training.epochs
    found: dict[int, Outcome] = {}
    repeats = len(sweep.repeats)
    for round in chosen:
        trials = {trial.number: trial for trial in read_round(round_file(paths.sweep, round))}
        for rung in range(len(rungs(sweep, epochs))):
            for number in range(width(sweep, len(trials), rung)):
                results = [
                    Result.read(result_file(paths.sweep, Slot(round, rung, number, repeat)))
                    for repeat in range(repeats)
                ]
                value = score(results)
                trial = trials[results[0].trial]
                found[trial.number] = (trial, results, value if value < float("inf") else None)
    return [found[number] for number in sorted(found)]
