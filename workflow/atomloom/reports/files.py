"""Files beside the report, with what each of them is; the sweeps that a run belongs to.

It knows folders and names of files, nothing of what they hold but the table of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atomloom.errors import AtomloomError
from atomloom.reports.formats import byte_size
from atomloom.reports.page import link
from atomloom.reports.tables import read_frame

REPORT = "report.html"
DESCRIPTIONS = {
    "model.safetensors": "the trained model, of the best epoch",
    "run.json": "run card: config, data, environment, keys",
    "spec.json": "content of the key that names the folder",
    "history.csv": "course of training, one row per epoch",
    "metrics.json": "errors by target and split",
    "predictions.parquet": "reference and predicted values, one row per structure",
    "predictions.csv": "reference and predicted values as text",
    "parity.png": "parity plot",
    "student.json": "time and agreement of student and teacher",
    "dataset.parquet": "ids, labels, formulas and splits",
    "split.json": "counts of the splits",
    "duplicates.csv": "duplicates across splits",
    "quarantine.csv": "records that could not be used, with reasons",
    "index.json": "statistics of the graphs",
    "index.parquet": "shard and row of each graph",
    "checkpoints": "models of earlier epochs",
    "state": "state from which training resumes",
    "logs": "logs of all jobs",
    "timings": "time and memory of all jobs",
}


@dataclass(frozen=True)
class FileRow:
    """File or folder, as a row of the table."""

    place: str
    """Part of the results: run, split, index, ..."""
    name: str
    address: str
    """Relative to the report."""
    description: str
    size: str
    """Empty for a folder."""


@dataclass(frozen=True)
class SweepLink:
    """Sweep that the run is a trial of."""

    trial: str
    address: str
    """Address of its page, relative to the report."""
    role: str = "trial"
    """`trial`, or `the refit of trial`."""


def file_rows(
    listed: Mapping[str, Path], single: Mapping[str, Path], folder: Path
) -> list[FileRow]:
    """Rows of all files that exist; hidden ones and the report itself are left out.

    Args:
        listed: part of the results -> folder whose files are rows.
        single: part of the results -> file or folder that is a row itself.
        folder: of the report.
    """
    found = [
        (place, one)
        for place, path in listed.items()
        for one in (sorted(path.iterdir()) if path.is_dir() else [])
        if not one.name.startswith(".") and one.name != REPORT
    ]
    found += [(place, path) for place, path in single.items() if path.exists()]
    return [_row(place, path, folder) for place, path in found]


def _row(place: str, path: Path, folder: Path) -> FileRow:
    is_folder = path.is_dir()
    description = DESCRIPTIONS.get(path.name, "")
    if not description and path.suffix == ".parquet":
        description = f"reference and predicted {path.stem}, one row per number"
    if not description and path.name.endswith(".zarr.zip"):
        description = f"labels {path.name.removesuffix('.zarr.zip')} as an array"
    return FileRow(
        place=place,
        name=path.name + "/" * is_folder,
        address=link(path, folder) + "/" * is_folder,
        description=description,
        size="" if is_folder else byte_size(path.stat().st_size),
    )


def sweeps_of(run: str, sweeps: Path, folder: Path) -> list[SweepLink]:
    """Sweeps whose table names a run; a table that cannot be read is left out.

    Args:
        run: key of the run.
        sweeps: folder of all sweeps of the data set.
        folder: of the report.
    """
    found = []
    for path in sorted(sweeps.glob("*/sweep.csv")):
        try:
            table = read_frame(path, as_text=True)
        except AtomloomError:
            continue  # one that is just being written
        address = link(path.with_name("sweep.html"), folder)
        for column, role in (("run", "trial"), ("refit", "the refit of trial")):
            if column not in table or "trial" not in table:
                continue
            found += [
                SweepLink(str(trial), address, role)
                for trial, runs in zip(table["trial"], table[column], strict=True)
                if run and run in str(runs).split(",")
            ]
    return found
