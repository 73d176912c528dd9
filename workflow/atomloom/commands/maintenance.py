"""Maintenance of a store: find damaged shards, remove them, and delete unused files.

Shards are made again by the next run from what determines them, so removing one costs only time (for
a download, also network). It knows shards and the two kinds of files that refer to them, indexes and
plans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from atomloom.errors import AtomloomError, again
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.store import read_graphs
from atomloom.pipeline.plan import Plan
from atomloom.readers.downloads import damaged_downloads
from atomloom.stages.convert import read_chunk, read_chunk_records
from atomloom.stages.derived import PARTIAL
from atomloom.stages.features import read_features
from atomloom.stages.graphs import DONORS, read_chunk_graphs
from atomloom.stages.label import read_labels
from atomloom.store.files import TEMPORARY_SUFFIX, read_json
from atomloom.store.keys import short_hash
from atomloom.store.parquet import read_table
from atomloom.store.shards import SUFFIX, verify_shard
from atomloom.structures.table import StructureTable

PARTS = ("structures", "labels", "features", "graphs", "downloads", "given")
"""Folders of a store; those without files do not exist."""
KEYED = ("graphs", "labels", "features")
"""Folders whose folders are named by a spec."""
BY_CHUNK = ("labels", "features")
"""Folders whose shards, by whatever teacher or source, are used as long as their chunk is."""
UNFINISHED_AFTER = 24 * 3600.0
"""Age in seconds above which a temporary file counts as the leftover of a killed job."""


@dataclass(frozen=True)
class Damage:
    """File of a store that is damaged or not what its name says."""

    path: Path
    problem: str


def shards_in(store: Path) -> list[Path]:
    """List all shards of a store, structures and graphs.

    Raises:
        AtomloomError: when there is no such folder, or it is not a store.
    """
    if not store.is_dir():
        raise AtomloomError("no such store", where=store)
    if not any((store / name).is_dir() for name in PARTS):
        raise AtomloomError(
            f"is not a store: it has no folder {', '.join(PARTS)}",
            where=store,
            todo="give the folder of `paths.store` (store)",
        )
    return sorted(store.rglob(f"*{SUFFIX}"))


def verify_store(store: Path, workers: int = 1) -> Iterator[Damage]:
    """Recompute all digests, including those of downloads, and the key of every folder; yields damage."""
    paths = shards_in(store)
    for spec in sorted(path for kind in KEYED for path in store.glob(f"{kind}/*/spec.json")):
        try:
            if short_hash(read_json(spec)) != spec.parent.name:
                yield Damage(spec, "is not the spec after which its folder is named")
        except AtomloomError as error:
            yield Damage(spec, error.what)
    for path in damaged_downloads(store / "downloads"):
        yield Damage(path, "is not what was downloaded")
    for path in sorted(store.glob(f"graphs/*/{DONORS}")):
        try:
            read_table(path, todo=again("index"))
        except AtomloomError as error:
            yield Damage(path, error.what)
    problems = partial(problems_of, store)
    if workers > 1 and len(paths) > 1:
        with ProcessPoolExecutor(workers) as pool:
            yield from _damage(zip(paths, pool.map(problems, paths, chunksize=8), strict=True))
    else:
        yield from _damage((path, problems(path)) for path in paths)


def problems_of(store: Path, path: Path) -> list[str]:
    """List the damage of a shard, or why it does not belong where it is; empty if it is intact."""
    try:
        _look_through(store, path)
    except AtomloomError as error:
        return verify_shard(path) or [error.what]
    return []


def _look_through(store: Path, path: Path) -> None:
    """Read a shard as its path says, and compare it with the structures of its chunk.

    Raises:
        AtomloomError: where they do not match.
    """
    kind, *folders = path.relative_to(store).parts[:-1] or [""]
    if kind == "structures":
        _require_hashes(path, read_chunk(path).table)
        return
    try:
        records = read_chunk_records(store / "structures" / path.name)
    except AtomloomError:
        records = None  # removed, or reported by itself
    if kind == "graphs":
        _require_centres(path, read_graphs(path))
        if records is not None:
            read_chunk_graphs(records, path)
    elif kind == "labels":
        read_labels(path, None if PARTIAL in folders or records is None else records.hash)
    elif kind == "features":
        read_features(path, None if PARTIAL in folders or records is None else records.hash)
    else:
        raise AtomloomError(
            "is neither of structures, nor of labels, features or graphs", where=path
        )


def _require_centres(path: Path, table: GraphTable) -> None:
    """Raise AtomloomError if a triplet joins two edges of different atoms."""
    if table.triplet is None or table.triplet_ptr is None:
        return
    first = np.repeat(table.edge_ptr[:-1], np.diff(table.triplet_ptr))
    ends = [table.dst[first + table.triplet[:, side]] for side in (0, 1)]
    if not np.array_equal(*ends):
        raise AtomloomError("makes no sense: a triplet has two centres", where=path)


def _require_hashes(path: Path, table: StructureTable) -> None:
    """Raise AtomloomError if a structure does not have its recorded hash."""
    for row in range(len(table)):
        if table[row].hash != table.hash[row].tobytes():
            raise AtomloomError(f"structure {row} does not have its recorded hash", where=path)


def _damage(found: Iterable[tuple[Path, list[str]]]) -> Iterator[Damage]:
    for path, problems in found:
        if problems:
            yield Damage(path, "; ".join(problems))


def repair_store(store: Path, workers: int, log: Callable[[str], None]) -> int:
    """Remove the files that `verify_store` finds; returns their number."""
    damaged = list(verify_store(store, workers))
    for item in damaged:
        item.path.unlink()
        log(f"removed {item.path}: {item.problem}")
    return len(damaged)


def named_shards(results: Sequence[Path]) -> set[str]:
    """Names `structures/<chunk>`, `labels/<chunk>`, `features/<chunk>` and `graphs/<graph>/<chunk>` of all
    shards used by an index or plan below these results folders.

    Raises:
        AtomloomError: when a folder holds no data set, or an index or plan cannot be read: then
            no file may count as unused.
    """
    named: set[str] = set()
    for folder in results:
        plans = sorted(folder.glob("*/plan/*/plan.json"))
        if not plans:
            raise AtomloomError(
                "holds no data set",
                where=folder,
                todo="give the results folders of all projects on this store",
            )
        for plan in plans:
            keys = Plan.read(plan).chunk_keys
            of_chunks = ("structures", *BY_CHUNK)
            named |= {f"{kind}/{key}{SUFFIX}" for kind in of_chunks for key in keys}
        for index in folder.glob("*/index/*/index.json"):
            content = read_json(index, "graph_key", "shards", todo=again("index"))
            named |= {f"graphs/{content['graph_key']}/{shard}" for shard in content["shards"]}
    return named


def _name_of(path: Path) -> str:
    """Name of a shard as in plans and indexes; labels of any teacher, and features, go by their chunk."""
    return f"{path.parts[0]}/{path.name}" if path.parts[0] in BY_CHUNK else path.as_posix()


def unused_files(store: Path, results: Sequence[Path], min_age: float) -> list[Path]:
    """List unused shards and leftovers of killed jobs, older than `min_age` seconds.

    The age protects shards that a running workflow has built but not indexed yet.
    """
    named = named_shards(results)
    now = time.time()

    def old(path: Path, age: float) -> bool:
        return now - path.stat().st_mtime > age

    unused = [
        path
        for path in shards_in(store)
        if _name_of(path.relative_to(store)) not in named and old(path, min_age)
    ]
    parts = sorted(store.rglob(f".*{TEMPORARY_SUFFIX}"))
    return unused + [path for path in parts if old(path, max(min_age, UNFINISHED_AFTER))]
