"""Stage `label`: a teacher computes energies, forces and stress of the structures of one chunk.

Labels are addressed by teacher and chunk, and computed once for each structure (`stages/derived.py`).
Failures are rows of the shard, and later of the quarantine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout
from atomloom.potentials.teachers import Label, teach
from atomloom.stages.convert import (
    ConvertedChunk,
    read_chunk,
    read_chunk_records,
    without_properties,
)
from atomloom.stages.derived import KEEP_EVERY, Derivation, derive
from atomloom.store.files import write_spec
from atomloom.store.forms import Form, misfit, misled
from atomloom.store.shards import REPAIR, read_shard, reasons_in, write_shard
from atomloom.structures.table import FORMS, StructureTable

LABEL_FORMS = {
    "node_ptr": FORMS["node_ptr"],
    "hash": FORMS["hash"],
    "energy": Form(("S",), ("float64",)),
    "forces": Form(("A", 3), ("float64",)),
    "stress": Form(("S", 3, 3), ("float64",)),
    "seconds": Form(("S",), ("float64",)),
}
"""Expected arrays of a shard of labels."""


@dataclass(frozen=True, eq=False)
class LabelledStructures:
    """Content of a shard of labels; in a finished one, rows are those of the shard of structures."""

    node_ptr: np.ndarray
    """[S+1] int64."""
    hash: np.ndarray
    """[S, 32] uint8, structure hashes."""
    energy: np.ndarray
    """[S] eV, NaN where the teacher failed."""
    forces: np.ndarray
    """[A, 3] eV/A, NaN where the teacher failed."""
    stress: np.ndarray
    """[S, 3, 3] eV/A^3, NaN also where there is no stress."""
    seconds: np.ndarray
    """[S], time of each label."""
    failures: dict[int, str]
    """Reason of each failure, by row."""


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
    how = Derivation(
        compute=lambda some: teach(teacher, some),
        known_in=_labels_in,
        write=_write,
        done="labelled",
        keep_every=KEEP_EVERY,
    )
    found = derive(how, path, table, log)
    log(f"{len(table) - found.failed:,} labels, {found.failed} failures{found.copied}")
    return path


def read_labels_of(layout: Layout, key: str) -> LabelledStructures:
    """Read the labels of a chunk.

    Raises:
        AtomloomError: when its shard is missing or damaged, or holds labels of other structures.
    """
    return read_labels(layout.labels(key), read_chunk_records(layout.structures(key)).hash)


def read_labels(path: Path, hashes: np.ndarray | None = None) -> LabelledStructures:
    """Read the labels of a shard, which must be finished if the structure hashes of its chunk are given.

    Raises:
        AtomloomError: when it is missing or damaged, holds labels of other structures, something else,
            or arrays that make no sense.
    """
    arrays, attributes = read_shard(path)
    failures = dict(reasons_in(attributes, "failures", path))
    wrong = "" if attributes.get("kind") == "labels" else "it is not a shard of labels"
    wrong = wrong or misfit(arrays, LABEL_FORMS)
    wrong = wrong or misled(arrays["node_ptr"], len(arrays["forces"]), "node_ptr", least=1)
    if not wrong and failures and not 0 <= min(failures) <= max(failures) < len(arrays["hash"]):
        wrong = "`failures` names rows that do not exist"
    if wrong:
        raise AtomloomError(f"makes no sense: {wrong}", where=path, todo=REPAIR)
    if hashes is not None and not np.array_equal(arrays["hash"], hashes):
        raise AtomloomError("holds labels of other structures", where=path, todo=REPAIR)
    return LabelledStructures(**{name: arrays[name] for name in LABEL_FORMS}, failures=failures)


def labelled_chunk(layout: Layout, key: str) -> tuple[ConvertedChunk, dict[int, str]]:
    """Read a chunk of structures with labels as properties, and the reasons of those without.

    Without a teacher, the labels are those of the records, and all reasons are known already.
    """
    chunk = read_chunk(layout.structures(key))
    if layout.config.teacher is None:
        return chunk, {}
    labels = read_labels(layout.labels(key), chunk.table.hash)
    properties = {name: getattr(labels, name) for name in ("energy", "forces", "stress")}
    reasons = {row: f"teacher: {reason}" for row, reason in labels.failures.items()}
    table = replace(chunk.table, properties=properties, per_atom=frozenset(["forces"]))
    return replace(chunk, table=table), reasons


def _labels_in(path: Path, wanted: Set[bytes]) -> dict[bytes, Label]:
    """Labels in a shard for the wanted structures, without failures."""
    hashes = read_shard(path, names=["hash"])[0]["hash"]
    rows = [row for row in range(len(hashes)) if hashes[row].tobytes() in wanted]
    if not rows:
        return {}
    labels = read_labels(path)
    found = {}
    for row in rows:
        if np.isfinite(labels.energy[row]):
            stress = labels.stress[row]
            found[labels.hash[row].tobytes()] = Label(
                float(labels.energy[row]),
                labels.forces[slice(*labels.node_ptr[row : row + 2])],
                stress if np.isfinite(stress).all() else None,
                float(labels.seconds[row]),
            )
    return found


def _write(path: Path, table: StructureTable, done: Mapping[int, Label]) -> None:
    """Write the labels of the rows that are done; for a finished chunk, of all rows."""
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
