"""Stage `label`: a teacher computes energies, forces and stress of the structures of one chunk.

Labels are addressed by teacher and chunk, and taken over by structure hash from any chunk of the same
teacher that has them. A long chunk keeps what it has done every now and then, so that a killed job
goes on where it was. Failures are rows of the shard, and of the quarantine later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.files import write_spec
from atomloom.layout import Layout
from atomloom.potentials.teachers import Label, teach
from atomloom.shards import SUFFIX, read_shard, write_shard
from atomloom.stages.convert import ConvertedChunk, read_chunk, without_properties
from atomloom.structures.table import StructureTable

KEEP_EVERY = 60.0
"""Seconds between two savings of an unfinished chunk."""


@dataclass(frozen=True, eq=False)
class LabelledStructures:
    """What a shard of labels holds; rows are those of the shard of structures."""

    energy: np.ndarray
    """[S] eV, NaN where the teacher failed."""
    forces: np.ndarray
    """[A, 3] eV/A, likewise."""
    stress: np.ndarray
    """[S, 3, 3] eV/A^3, NaN also where there is none."""
    seconds: np.ndarray
    """[S], what each took."""
    failures: dict[int, str]
    """Reason by row."""


def label_chunk(layout: Layout, key: str, log: Callable[[str], None]) -> Path:
    """Write the shard of labels of chunk `key` and return its path.

    Raises:
        AtomloomError: when the config has no teacher, it is not installed, or the chunk is not
            converted.
    """
    teacher = layout.config.teacher
    if teacher is None:
        raise AtomloomError("the config names no teacher", where="teacher")
    write_spec(layout.label_folder, layout.teacher_spec)
    table = without_properties(read_chunk(layout.structures(key)))
    path = layout.labels(key)
    partial = path.with_name("partial") / path.name
    done = _known_labels(layout.label_folder, table, partial)
    borrowed = len(done)
    missing = np.array([row for row in range(len(table)) if row not in done], dtype=np.int64)
    saved = begun = time.monotonic()
    for row, label in zip(missing, teach(teacher, table.take(missing)), strict=True):
        done[int(row)] = label
        if time.monotonic() - saved > KEEP_EVERY:
            _write(partial, table, done)
            saved = time.monotonic()
            rate = (len(done) - borrowed) / (saved - begun)
            left = (len(table) - len(done)) / rate
            log(f"{len(done)}/{len(table)} labelled, {rate:.2g}/s, {left:.0f} s left")
    _write(path, table, done)
    partial.unlink(missing_ok=True)
    failed = sum(1 for label in done.values() if label.failure)
    log(
        f"{len(table) - failed:,} labels, {failed} failures"
        + (f", {borrowed:,} known ones copied" if borrowed else "")
    )
    return path


def read_labels_of(layout: Layout, key: str) -> LabelledStructures:
    """The labels of a chunk.

    Raises:
        AtomloomError: when its shard is missing or damaged.
    """
    arrays, attributes = read_shard(layout.labels(key))
    failures = {int(row): str(reason) for row, reason in attributes["failures"]}
    names = ("energy", "forces", "stress", "seconds")
    return LabelledStructures(*(arrays[name] for name in names), failures=failures)


def labelled_chunk(layout: Layout, key: str) -> tuple[ConvertedChunk, dict[int, str]]:
    """A chunk of structures with their labels as properties, and the reasons of those without.

    Without a teacher, the labels are those of the records, and all reasons are known already.
    """
    chunk = read_chunk(layout.structures(key))
    if layout.config.teacher is None:
        return chunk, {}
    labels = read_labels_of(layout, key)
    properties = {name: getattr(labels, name) for name in ("energy", "forces", "stress")}
    reasons = {row: f"teacher: {reason}" for row, reason in labels.failures.items()}
    table = replace(chunk.table, properties=properties, per_atom=frozenset(["forces"]))
    return replace(chunk, table=table), reasons


def _known_labels(folder: Path, table: StructureTable, partial: Path) -> dict[int, Label]:
    """Labels of rows whose structures the teacher has labelled before, failures left out."""
    wanted = {table.hash[row].tobytes(): row for row in range(len(table))}
    known: dict[bytes, Label] = {}
    for path in [*sorted(folder.glob(f"*{SUFFIX}")), partial]:
        try:
            hashes = read_shard(path, names=["hash"])[0]["hash"]
            rows = [r for r in range(len(hashes)) if hashes[r].tobytes() in wanted]
            if rows:
                known |= _labels_in(path, rows)
        except AtomloomError:
            continue  # absent, or damaged: then it is computed again
    return {
        row: known[table.hash[row].tobytes()]
        for row in range(len(table))
        if table.hash[row].tobytes() in known
    }


def _labels_in(path: Path, rows: list[int]) -> dict[bytes, Label]:
    arrays, _ = read_shard(path)
    found = {}
    for row in rows:
        if np.isfinite(arrays["energy"][row]):
            stress = arrays["stress"][row]
            found[arrays["hash"][row].tobytes()] = Label(
                float(arrays["energy"][row]),
                arrays["forces"][slice(*arrays["node_ptr"][row : row + 2])],
                stress if np.isfinite(stress).all() else None,
                float(arrays["seconds"][row]),
            )
    return found


def _write(path: Path, table: StructureTable, done: dict[int, Label]) -> None:
    """Write the labels of the rows that are done; of a finished chunk, of all."""
    rows = np.array(sorted(done), dtype=np.int64)
    part = table.take(rows)
    labels = [done[int(row)] for row in rows]
    counts = np.diff(part.node_ptr)
    none = np.full((3, 3), np.nan)
    forces = [
        np.full((count, 3), np.nan) if label.forces is None else label.forces
        for label, count in zip(labels, counts, strict=True)
    ]
    arrays = {
        "hash": part.hash,
        "node_ptr": part.node_ptr,
        "energy": np.array([label.energy for label in labels], dtype=np.float64),
        "forces": np.concatenate(forces) if forces else np.zeros((0, 3)),
        "stress": np.array(
            [none if label.stress is None else label.stress for label in labels]
        ).reshape(-1, 3, 3),
        "seconds": np.array([label.seconds for label in labels], dtype=np.float64),
    }
    failures = [[place, label.failure] for place, label in enumerate(labels) if label.failure]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_shard(path, arrays, {"kind": "labels", "failures": failures})
