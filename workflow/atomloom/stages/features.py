"""Stage `features`: numbers that are computed for each structure of one chunk, by the sources of `features`.

They are addressed by source and chunk, and computed once for each structure (`stages/derived.py`), for all
projects on a store. Failures are rows of the shard, and later of the quarantine.

Legend: S structures, C columns of a source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.features.base import Described
from atomloom.features.registry import open_source
from atomloom.pipeline.paths import Layout
from atomloom.stages.convert import read_chunk, without_properties
from atomloom.stages.derived import KEEP_EVERY, Derivation, derive
from atomloom.store.files import write_spec
from atomloom.store.forms import Form, misfit
from atomloom.store.shards import REPAIR, read_shard, reasons_in, write_shard
from atomloom.structures.table import FORMS, StructureTable

FEATURE_FORMS = {
    "hash": FORMS["hash"],
    "values": Form(("S", "C"), ("float64",)),
    "seconds": Form(("S",), ("float64",)),
}
"""Expected arrays of a shard of features."""


@dataclass(frozen=True, eq=False)
class FeatureShard:
    """Content of a shard of features; in a finished one, rows are those of the shard of structures."""

    columns: tuple[str, ...]
    """Names of the numbers."""
    hash: np.ndarray
    """[S, 32] uint8, structure hashes."""
    values: np.ndarray
    """[S, C], NaN where the source failed."""
    seconds: np.ndarray
    """[S], time of each structure."""
    failures: dict[int, str]
    """Reason of each failure, by row."""


@dataclass(frozen=True, eq=False)
class ChunkFeatures:
    """Numbers by all sources for the structures of one chunk."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """[S] numbers by `feature.column`, NaN where the source failed."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Reasons why structures lack some, by row."""


def describe_chunk(layout: Layout, key: str, log: Callable[[str], None]) -> list[Path]:
    """Write the shards of chunk `key`, one per feature, and return their paths.

    Raises:
        AtomloomError: when the config names no features, a source cannot be opened, or the chunk is not
            converted.
    """
    if not layout.config.features:
        raise AtomloomError("the config names none", where="features")
    table = without_properties(read_chunk(layout.structures(key)))
    written = []
    for name, feature in layout.config.features.items():
        path = layout.features(name, key)
        write_spec(path.parent, layout.feature_spec(name))
        source = open_source(name, feature)
        columns = source.columns

        def write(
            path: Path,
            table: StructureTable,
            done: Mapping[int, Described],
            columns: tuple[str, ...] = columns,
        ) -> None:
            _write(path, table, done, columns)

        how = Derivation(
            compute=source.describe,
            known_in=_known_in if source.costly else None,
            write=write,
            done="described",
            keep_every=KEEP_EVERY,
        )
        found = derive(how, path, table, log)
        log(
            f"{name}: {len(columns)} numbers of {len(table) - found.failed:,} structures, "
            f"{found.failed} failures{found.copied}"
        )
        written.append(path)
    return written


def read_features(path: Path, hashes: np.ndarray | None = None) -> FeatureShard:
    """Read a shard of features, which must be finished if the structure hashes of its chunk are given.

    Raises:
        AtomloomError: when it is missing or damaged, holds features of other structures, something else, or
            arrays that make no sense.
    """
    arrays, attributes = read_shard(path)
    failures = dict(reasons_in(attributes, "failures", path))
    columns = attributes.get("columns")
    wrong = "" if attributes.get("kind") == "features" else "it is not a shard of features"
    wrong = wrong or misfit(arrays, FEATURE_FORMS)
    if not wrong and (
        not isinstance(columns, list)
        or not all(isinstance(name, str) for name in columns)
        or len(set(columns)) != len(columns)
        or len(columns) != arrays["values"].shape[1]
    ):
        wrong = "`columns` are not names of its numbers"
    if not wrong and failures and not 0 <= min(failures) <= max(failures) < len(arrays["hash"]):
        wrong = "`failures` names rows that do not exist"
    if not wrong:
        known = np.isfinite(arrays["values"]).all(axis=1)
        known[list(failures)] = True
        wrong = "" if known.all() else "numbers are missing without a reason"
    if wrong:
        raise AtomloomError(f"makes no sense: {wrong}", where=path, todo=REPAIR)
    if hashes is not None and not np.array_equal(arrays["hash"], hashes):
        raise AtomloomError("holds features of other structures", where=path, todo=REPAIR)
    assert isinstance(columns, list)
    own = {name: arrays[name] for name in FEATURE_FORMS}
    return FeatureShard(columns=tuple(columns), failures=failures, **own)


def features_of_chunk(layout: Layout, key: str, hashes: np.ndarray) -> ChunkFeatures:
    """Read the numbers by all features of a config for the structures of a chunk.

    Raises:
        AtomloomError: as `read_features`.
    """
    found = ChunkFeatures()
    for name in sorted(layout.config.features):  # as keys do not know in which order they are named
        shard = read_features(layout.features(name, key), hashes)
        for place, column in enumerate(shard.columns):
            found.columns[f"{name}.{column}"] = shard.values[:, place]
        for row, reason in shard.failures.items():
            found.reasons.setdefault(row, f"{name}: {reason}")
    return found


def _known_in(path: Path, wanted: Set[bytes]) -> dict[bytes, Described]:
    """Numbers in a shard for the wanted structures, without failures."""
    hashes = read_shard(path, names=["hash"])[0]["hash"]
    rows = [row for row in range(len(hashes)) if hashes[row].tobytes() in wanted]
    if not rows:
        return {}
    shard = read_features(path)
    return {
        shard.hash[row].tobytes(): Described(shard.values[row], float(shard.seconds[row]))
        for row in rows
        if row not in shard.failures
    }


def _write(
    path: Path, table: StructureTable, done: Mapping[int, Described], columns: tuple[str, ...]
) -> None:
    """Write the numbers of the rows that are done; for a finished chunk, of all rows."""
    rows = sorted(done)
    none = np.full(len(columns), np.nan)
    values = [none if (one := done[row]).values is None else one.values for row in rows]
    failures = [[place, done[row].failure] for place, row in enumerate(rows) if done[row].failure]
    arrays = {
        "hash": table.hash[np.array(rows, dtype=np.int64)],
        "values": np.array(values, dtype=np.float64).reshape(len(rows), len(columns)),
        "seconds": np.array([done[row].seconds for row in rows], dtype=np.float64),
    }
    attributes = {"kind": "features", "columns": list(columns), "failures": failures}
    write_shard(path, arrays, attributes)
