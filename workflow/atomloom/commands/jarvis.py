"""A contribution to JARVIS-Leaderboard from a run, and its benchmarks as tables of labels.

A benchmark is a zip with one JSON file, {"train": {id: value}, "val": {...}, "test": {...}}; a contribution is a
folder with the test predictions as NAME.csv.zip, `metadata.json` and `run.sh`.
"""

from __future__ import annotations

import io
import json
import math
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from atomloom.commands.finished_runs import Cost, FinishedRun, read_run
from atomloom.errors import AtomloomError
from atomloom.store.files import plain_stat, write_atomically, write_json, write_text

LARGEST = 1 << 30
"""Max bytes of an unpacked benchmark."""
SPLITS = ("train", "val", "test")
METRICS = {"mae": "SinglePropertyPrediction", "acc": "SinglePropertyClass"}
"""Metric -> the kind of benchmark."""
SAME = 1e-3
"""Tolerance of a label, relative above 1: benchmarks give rounded values."""
OTHERS = 0.01
"""Share of test labels that may differ, as data sets are corrected."""


@dataclass(frozen=True)
class About:
    """Description of a contribution by its authors."""

    name: str
    team: str
    email: str
    url: str = ""


def write_contribution(
    folder: Path, benchmark: str, file: Path, about: About, output: Path
) -> tuple[float, Cost]:
    """Write the contribution of a run into a folder; return its error (or accuracy) and cost.

    The same run gives the same bytes: the date is that of the run.

    Raises:
        AtomloomError: when the ids or labels of the test rows are not those of the benchmark.
    """
    if "@" not in about.email:
        raise AtomloomError("is not an address", where=f"--email {about.email}")
    parts = _parts(benchmark, file)
    truth = read_benchmark(file)["test"]
    run = read_run(folder)
    test = _aligned(run, truth, file)
    found = test["prediction"].to_numpy(np.float64)
    wanted = np.array([float(truth[name]) for name in test["id"]])
    of_classes = parts["metric"] == "acc"
    if of_classes != run.classes:
        raise AtomloomError(
            f"is not a model of {'classes' if of_classes else 'numbers'} (training.loss: {run.loss}), which "
            f"{benchmark} is for",
            where=folder,
        )
    if of_classes:
        found = (found > 0.5 if run.loss == "bce" else found).astype(np.int64)
        score = float((found == wanted).mean())
    else:
        score = float(np.abs(found - wanted).mean())
    table = pd.DataFrame({"id": test["id"], "prediction": found})
    _write_zip(output / f"{benchmark}.csv.zip", f"{benchmark}.csv", table.to_csv(index=False))
    write_json(output / "metadata.json", _metadata(run, about, file))
    write_text(output / "config.yaml", yaml.safe_dump(run.recipe, sort_keys=False))
    write_text(output / "run.sh", _script(benchmark, file, about))
    return score, run.cost


def write_split(file: Path, target: str, output: Path) -> dict[str, int]:
    """Write a benchmark as a label table with columns id, `target` and split; return the rows of each split.

    An id that is in several splits, of which there are some, has the row of the one nearest to the test.

    Raises:
        AtomloomError: when the file is not a benchmark of single numbers, or the table would have two columns of
            one name.
    """
    if target in ("id", "split"):
        raise AtomloomError(f"a column is called {target} already", where="--target")
    content = read_benchmark(file)
    rows = {
        name: (name, value, split)
        for split in SPLITS
        for name, value in content.get(split, {}).items()
    }
    table = pd.DataFrame(list(rows.values()), columns=["id", target, "split"])
    write_atomically(output, lambda path: table.to_csv(path, index=False))
    return {split: int((table["split"] == split).sum()) for split in SPLITS}


def read_benchmark(path: Path) -> dict[str, dict[str, float]]:
    """Read the splits of a benchmark: values by id.

    Raises:
        AtomloomError: when it is not a zip with one JSON file of such splits, or a value is not a finite number.
    """
    todo = "it is in jarvis_leaderboard's benchmarks/AI/<kind>/<data set>_<property>.json.zip"
    try:
        plain_stat(path)
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if one.filename.endswith(".json")]
            if len(members) != 1 or members[0].file_size > LARGEST:
                raise AtomloomError("is not a zip with one JSON file", where=path, todo=todo)
            content = json.loads(archive.read(members[0]))
    except OSError as error:
        raise AtomloomError(f"cannot be read: {error.strerror}", where=path, todo=todo) from None
    except (zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError) as error:
        raise AtomloomError(f"is not a benchmark: {error}", where=path, todo=todo) from None
    splits = content if isinstance(content, Mapping) else {}
    if not all(isinstance(splits.get(name), Mapping) for name in ("train", "test")):
        raise AtomloomError("has no splits `train` and `test`", where=path, todo=todo)
    for split in SPLITS:
        values = splits.get(split, {})
        for name, value in values.items():
            if not _is_number(value):
                raise AtomloomError(
                    f"{name} has {str(value)[:40]!r}: not a benchmark of single numbers", where=path
                )
    return {split: dict(splits[split]) for split in SPLITS if split in splits}


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _parts(benchmark: str, file: Path) -> dict[str, str]:
    """Parts of a benchmark's name, which fit together and to its file."""
    names = ("method", "kind", "property", "dataset", "split", "metric")
    values = benchmark.split("-")
    parts = dict(zip(names, values, strict=False))
    if (
        len(values) != len(names)
        or parts["split"] != "test"
        or METRICS.get(parts["metric"]) != parts["kind"]
    ):
        raise AtomloomError(
            "is not a benchmark of one number per structure",
            where=benchmark,
            todo="name it as AI-SinglePropertyPrediction-<property>-<data set>-test-mae",
        )
    wanted = f"{parts['dataset']}_{parts['property']}.json.zip"
    if file.name != wanted:
        raise AtomloomError(f"is not the file of {benchmark}: that is {wanted}", where=file)
    return parts


def _aligned(run: FinishedRun, truth: Mapping[str, Any], file: Path) -> pd.DataFrame:
    """Test rows in the order of the benchmark.

    Raises:
        AtomloomError: when ids or labels differ.
    """
    test = run.test.assign(id=lambda frame: frame["id"].astype(str)).set_index("id")
    missing = [name for name in truth if name not in test.index]
    extra = [name for name in test.index if name not in truth]
    if missing or extra:
        first = (missing or extra)[0]
        raise AtomloomError(
            f"the test rows are not those of {file.name}: {len(missing)} are missing and {len(extra)} are not in "
            f"it, such as {first}",
            where=run.folder,
            todo="`atomloom leaderboard split` makes the table of its labels and split; records in quarantine "
            "have no prediction",
        )
    test = test.loc[list(truth)].reset_index()
    wanted = np.array([float(value) for value in truth.values()])
    labels = test["label"].to_numpy(np.float64)
    differ = ~(np.abs(labels - wanted) <= SAME * np.maximum(1, np.abs(wanted)))
    if differ.mean() > OTHERS:
        place = int(np.flatnonzero(differ)[0])
        raise AtomloomError(
            f"{differ.sum():,} of {len(test):,} labels are not those of {file.name}: {test['id'][place]} has "
            f"{labels[place]:.6g}, there {wanted[place]:.6g}; another property or unit?",
            where=run.folder,
        )
    return test


def _metadata(run: FinishedRun, about: About, file: Path) -> dict[str, Any]:
    """The content of `metadata.json`."""
    environment = run.card["environment"]
    finished = datetime.fromisoformat(run.card["finished"])
    return {
        "model_name": about.name,
        "project_url": about.url,
        "date_submitted": f"{finished:%m-%d-%Y}",
        "author_email": about.email,
        "database_version": file.name,
        "team_name": about.team,
        "time_taken_seconds": float(run.card["seconds"]),
        "cpu_hours": run.cost.cpu_hours,
        "gpu_hours": run.cost.gpu_hours,
        "language": "python",
        "os": "linux",
        "software_used": ",".join(f"{n}=={v}" for n, v in sorted(run.versions.items())),
        "hardware_used": f"{environment.get('cpu', '')}, device {environment['device']}",
        "git_url": [about.url],
    }


def _script(benchmark: str, file: Path, about: About) -> str:
    """The content of `run.sh`."""
    options = {
        **{"--name": about.name, "--team": about.team, "--email": about.email},
        **({"--url": about.url} if about.url else {}),
    }
    own = " ".join(f"{name} {shlex.quote(value)}" for name, value in options.items())
    return (
        "#!/bin/bash\n"
        "# Trains, tests and writes this contribution again; config.yaml names the data.\n"
        "set -e\n"
        "pip install atomloom\n"
        'run=$(python -c "\n'
        "import sys\n"
        "from atomloom.api import run_pipeline\n"
        "from atomloom.config import load_config\n"
        "log = lambda line: print(line, file=sys.stderr)\n"
        "print(run_pipeline(load_config('config.yaml'), log).folder)\n"
        '")\n'
        f'atomloom leaderboard jarvis "$run" --benchmark {benchmark} \\\n'
        f"  --file {shlex.quote(file.name)} {own} --output contribution\n"
    )


def _write_zip(path: Path, member: str, text: str) -> None:
    """Write a zip of one member, whose bytes depend on the content alone."""
    packed = io.BytesIO()
    about = zipfile.ZipInfo(member)  # dated 1980
    about.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(about, text)
    write_atomically(path, lambda temporary: temporary.write_bytes(packed.getvalue()))
