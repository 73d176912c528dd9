"""A submission to Matbench v0.1 from five runs, one per fold: `results.json.gz`, `info.json` and source.

The form is that of the package `matbench` 0.6, whose scorer accepts it, folds included: it takes the test rows
of scikit-learn's shuffled five-fold division with a fixed seed, which is computed here from the number of rows. A run's
fold is known by its test rows, and the data set by the spread of its labels.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from atomloom.commands.finished_runs import Cost, FinishedRun, read_run
from atomloom.errors import AtomloomError
from atomloom.pipeline.outside_data import told_of
from atomloom.pipeline.runs import changes_nothing, settings_apart
from atomloom.store.files import write_atomically, write_json, write_text

FOLDS = 5
SEED = 18012019
VERSION = "0.6"
BENCHMARK = "matbench_v0.1"
TOLERANCE = 1e-4
"""Relative tolerance of the spread of labels, which survive a division into folds but not another unit."""


@dataclass(frozen=True)
class Task:
    """A task of Matbench whose inputs are structures."""

    name: str
    rows: int
    spread: float
    """Mean absolute deviation of the labels; of classes, the share of true ones."""
    classes: bool = False

    @property
    def ids(self) -> list[str]:
        """Ids of all rows, in order."""
        digits = len(str(self.rows))
        stem = self.name.replace("matbench", "mb").replace("_", "-")
        return [f"{stem}-{row + 1:0{digits}d}" for row in range(self.rows)]


TASKS = {
    task.name: task
    for task in (
        Task("matbench_dielectric", 4764, 0.808534704217072),
        Task("matbench_jdft2d", 636, 67.20200406491116),
        Task("matbench_log_gvrh", 10987, 0.29313828328604646),
        Task("matbench_log_kvrh", 10987, 0.2896736342937069),
        Task("matbench_mp_e_form", 132752, 1.0059220443295362),
        Task("matbench_mp_gap", 106113, 1.3271449960162496),
        Task("matbench_mp_is_metal", 106113, 0.43492314796490533, classes=True),
        Task("matbench_perovskites", 18928, 0.5659924184827462),
        Task("matbench_phonons", 1265, 323.78696979348734),
    )
}
"""Tasks by name. Those that have only compositions are not for models of structures."""


@dataclass(frozen=True)
class About:
    """Description of a submission by its authors."""

    algorithm: str
    authors: str
    notes: str = ""
    bibtex: str = ""


def write_submission(
    task_name: str, folders: Sequence[Path], about: About, output: Path
) -> dict[str, Any]:
    """Write the submission of five runs into a folder; return mean scores and costs.

    The same runs give the same bytes: the date is that of the last run.

    Raises:
        AtomloomError: when a fold is missing or there twice, ids or labels are not those of the task, runs
            differ in more than the fold, or a prediction is unusable.
    """
    task = _task(task_name)
    runs = [read_run(folder) for folder in folders]
    _require_one_recipe(runs)
    by_fold = _by_fold(task, runs)
    tests = [_by_row(task, run) for run in by_fold]
    _require_labels(task, pd.concat(tests))
    scores = [_scores(task, test) for test in tests]
    cost = sum((run.cost for run in by_fold), Cost(0.0, 0.0))
    ids = task.ids
    results = {
        f"fold_{fold}": {
            "data": {
                ids[row]: float(value)
                for row, value in zip(test.index, test["prediction"], strict=True)
            },
            "parameters": {
                "model": run.config["model"]["name"],
                "run_key": run.card.get("run_key", ""),
                "epochs": run.card.get("epochs_run", 0),
                "seconds": float(run.card["seconds"]),
            },
            "scores": score,
            "uncertainty": None,
        }
        for fold, (run, test, score) in enumerate(zip(by_fold, tests, scores, strict=True))
    }
    _write_results(output / "results.json.gz", _benchmark(task, results, by_fold, about, cost))
    write_json(output / "info.json", _info(by_fold, about, cost))
    write_text(output / "config.yaml", yaml.safe_dump(_recipe(by_fold[0]), sort_keys=False))
    write_text(output / "run.py", RUN.format(task=task.name, folds=FOLDS, **vars(about)))
    means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return {"scores": means, "cost": cost}


RUN = '''"""Trains and tests the {folds} folds, and writes this submission again (pip install atomloom)."""

import subprocess
from pathlib import Path

import yaml

from atomloom.api import run_pipeline
from atomloom.config import parse_config

content = yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))
Path("references.bib").write_text({bibtex!r}, encoding="utf-8")
runs = []
for fold in range({folds}):
    content["split"]["fold"] = fold
    runs.append(str(run_pipeline(parse_config(content)).folder))
subprocess.run(
    ["atomloom", "leaderboard", "matbench", *runs, "--task", {task!r}, "--algorithm", {algorithm!r},
     "--authors", {authors!r}, "--notes", {notes!r}, "--bibtex", "references.bib", "--output", "submission"],
    check=True,
)
'''


def _task(name: str) -> Task:
    if name not in TASKS:
        raise AtomloomError(
            f"is not a task of {BENCHMARK} with structures; there are {', '.join(TASKS)}",
            where=name,
        )
    return TASKS[name]


def folds_of(task: Task, labels: np.ndarray | None = None) -> list[np.ndarray]:
    """Test rows of each fold, ascending.

    Args:
        task: the task.
        labels: [rows] of all rows, by which classes are divided evenly.
    """
    if task.classes:
        try:
            from sklearn.model_selection import StratifiedKFold
        except ImportError:
            raise AtomloomError(
                "the folds of classes are scikit-learn's", todo="pip install scikit-learn"
            ) from None
        assert labels is not None
        division = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
        return [test for _, test in division.split(np.zeros(task.rows), labels)]
    order = np.arange(task.rows)
    np.random.RandomState(SEED).shuffle(order)
    return [np.sort(part) for part in np.array_split(order, FOLDS)]


def _require_one_recipe(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs that differ in more than the fold, and the runs that they continue."""
    for run in runs[1:]:
        if run.target != runs[0].target:
            raise AtomloomError(
                f"predicts {run.target}, and {runs[0].folder} {runs[0].target}: runs of different tasks",
                where=run.folder,
            )
        for name, first, other in settings_apart(runs[0].config, run.config):
            parents = name == "training.continue_from" and first and other
            if name != "split.fold" and not parents and not changes_nothing(name):
                raise AtomloomError(
                    f"differs from {runs[0].folder} in {name}: {other}, not {first}: a submission is of one recipe",
                    where=run.folder,
                )


def _rows(task: Task, run: FinishedRun, ids: Sequence[str]) -> list[int]:
    """Rows of the task for ids: Matbench's own, counted from 1, or ones that end in the row, counted from 0.

    Raises:
        AtomloomError: when an id names no row.
    """
    own = {name: row for row, name in enumerate(task.ids)}
    rows = []
    for name in map(str, ids):
        match = re.fullmatch(r"(?:.*[^0-9])?([0-9]{1,9})", name)
        row = own.get(name, int(match[1]) if match and not name.startswith("mb-") else -1)
        if not 0 <= row < task.rows:
            raise AtomloomError(
                f"{name} is not the id of one of the {task.rows:,} rows of {task.name}",
                where=run.folder,
            )
        rows.append(row)
    return rows


def _by_row(task: Task, run: FinishedRun) -> pd.DataFrame:
    """Test rows by their row in the task, ascending."""
    test = run.test
    return test.set_axis(_rows(task, run, test["id"]), axis=0).sort_index()


def _by_fold(task: Task, runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs in the order of their folds.

    Raises:
        AtomloomError: when the test rows of a run are those of no fold, or a fold is missing or there twice.
    """
    labels = None
    if task.classes:
        every = pd.concat([_by_row(task, run)["label"] for run in runs])
        labels = every[~every.index.duplicated()].reindex(range(task.rows)).to_numpy()
        if np.isnan(labels.astype(np.float64)).any():
            raise AtomloomError(
                f"the test rows of {len(runs)} runs are not all {task.rows:,} rows of {task.name}",
                todo=f"give the {FOLDS} runs of its folds",
            )
    folds = [set(rows.tolist()) for rows in folds_of(task, labels)]
    found: dict[int, FinishedRun] = {}
    for run in runs:
        rows = set(_by_row(task, run).index)
        fold = max(range(FOLDS), key=lambda one: len(folds[one] & rows))
        if rows != folds[fold]:
            missing, extra = sorted(folds[fold] - rows), sorted(rows - folds[fold])
            more = f", such as {task.ids[(missing or extra)[0]]}"
            raise AtomloomError(
                f"test rows are those of no fold of {task.name}: of fold {fold}, {len(missing)} are missing and "
                f"{len(extra)} are not its own{more}",
                where=run.folder,
                todo="use split.kind: folds with Matbench's folds; records in quarantine have no prediction",
            )
        if fold in found:
            raise AtomloomError(
                f"is of fold {fold}, as is {found[fold].folder}: one run per fold", where=run.folder
            )
        found[fold] = run
    if missing := [str(fold) for fold in range(FOLDS) if fold not in found]:
        raise AtomloomError(
            f"{len(found)} of {FOLDS} folds: there is no run of fold {', '.join(missing)}",
            where=task.name,
        )
    return [found[fold] for fold in range(FOLDS)]


def _require_labels(task: Task, tests: pd.DataFrame) -> None:
    """Refuse labels that are not those of the task: of another data set, or in another unit."""
    labels = tests["label"].to_numpy(np.float64)
    if not np.isfinite(labels).all():
        raise AtomloomError("a test row has no label", where=task.name)
    spread = labels.mean() if task.classes else np.abs(labels - labels.mean()).mean()
    if abs(spread - task.spread) > TOLERANCE * task.spread:
        kind = "share of true labels" if task.classes else "mean absolute deviation of the labels"
        raise AtomloomError(
            f"the {kind} is {spread:.6g}, that of {task.name} {task.spread:.6g}: these are predictions of "
            "another data set, target or unit"
        )


def _scores(task: Task, test: pd.DataFrame) -> dict[str, float]:
    """The scores of a fold, as `matbench` defines them."""
    labels = test["label"].to_numpy(np.float64)
    values = test["prediction"].to_numpy(np.float64)
    if not task.classes:
        errors = np.abs(values - labels)
        known = np.abs(labels) > 1e-5
        return {
            "mae": float(errors.mean()),
            "rmse": float(np.sqrt(np.mean(errors**2))),
            "mape": float(np.mean(errors[known] / np.abs(labels[known]))),
            "max_error": float(errors.max()),
        }
    if ((values < 0) | (values > 1)).any():
        raise AtomloomError("predictions of classes are probabilities", todo="training.loss: bce")
    true, guessed = labels > 0.5, values > 0.5
    hits = (true & guessed).sum()
    balanced = (guessed[true].mean() + (~guessed[~true]).mean()) / 2
    return {
        "accuracy": float((true == guessed).mean()),
        "balanced_accuracy": float(balanced),
        "f1": float(2 * hits / max(1, true.sum() + guessed.sum())),
        # Of the classes, not of the probabilities: so it is in all scores of the package.
        "rocauc": float(balanced),
    }


def _benchmark(
    task: Task,
    results: Mapping[str, Any],
    runs: Sequence[FinishedRun],
    about: About,
    cost: Cost,
) -> dict[str, Any]:
    """The content of `results.json.gz`."""
    last = max(datetime.fromisoformat(run.card["finished"]) for run in runs)
    content: dict[str, Any] = {
        "@module": "matbench.bench",
        "@class": "MatbenchBenchmark",
        "version": VERSION,
        "benchmark_name": BENCHMARK,
        "datestamp": f"{last:%Y.%m.%d %H:%M.%S}",
        "user_metadata": {
            "algorithm": about.algorithm,
            "atomloom": runs[0].versions.get("atomloom", ""),
            "cpu_hours": cost.cpu_hours,
            "gpu_hours": cost.gpu_hours,
            "device": str(runs[0].card["environment"]["device"]),
        },
        "tasks": {
            task.name: {
                "@module": "matbench.task",
                "@class": "MatbenchTask",
                "benchmark_name": BENCHMARK,
                "dataset_name": task.name,
                "results": results,
            }
        },
    }
    # The package refuses a file whose content has another hash than this, of its keys in order.
    text = json.dumps(content, sort_keys=True)
    return content | {"hash": hashlib.sha256(text.encode()).hexdigest()}


def _info(runs: Sequence[FinishedRun], about: About, cost: Cost) -> dict[str, Any]:
    """The content of `info.json`."""
    seen = dict.fromkeys(line for run in runs for line in told_of(run.card))
    notes = [about.notes, *(f"{line}." for line in seen), f"{cost.text}, all folds together."]
    pinned = {n: v for run in runs for n, v in run.versions.items() if n != "python"}
    return {
        "authors": about.authors,
        "algorithm": about.algorithm,
        "algorithm_long": f"{runs[0].model_text} Trained by atomloom.",
        "bibtex_refs": about.bibtex,
        "notes": " ".join(note for note in notes if note),
        "requirements": {
            "python": [
                f"matbench=={VERSION}",
                *(f"{name}=={version.split('+')[0]}" for name, version in sorted(pinned.items())),
            ]
        },
    }


def _recipe(run: FinishedRun) -> dict[str, Any]:
    """The config that made a run, without the fold."""
    split = {name: value for name, value in run.config["split"].items() if name != "fold"}
    return run.recipe | {"split": split}


def _write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Write compressed JSON whose bytes depend on the content alone."""
    data = json.dumps(content, allow_nan=False).encode()

    def write(temporary: Path) -> None:
        with (
            open(temporary, "wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        ):
            packed.write(data)

    write_atomically(path, write)
