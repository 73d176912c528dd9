"""Target arrays: values of targets that are not columns of `dataset.parquet`, one file each alongside it.

`split` takes them from the shards of structures, or of labels, once; training and evaluation read only
these files. They have one row per converted structure, in the order of the records, whether it is in the
data set or not, and are joined by record. A missing file, as in results of an earlier version, is made
from the shards. This module knows nothing of splits or graphs.

Legend: R structures, A atoms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atomloom.errors import AtomloomError, again
from atomloom.pipeline.paths import RunPaths
from atomloom.pipeline.plan import Chunk
from atomloom.stages.convert import ConvertedChunk, require_whole
from atomloom.stages.label import labelled_chunk
from atomloom.stages.labels import array_targets
from atomloom.store.forms import Form, misfit, misled
from atomloom.store.shards import Blocks, read_shard, write_shard
from atomloom.structures.table import StructureTable
from atomloom.targets import TargetSpec


def labelled_chunks(paths: RunPaths) -> Iterator[tuple[Chunk, ConvertedChunk, dict[int, str]]]:
    """Iterate over chunks with their labelled structures, and the reasons of those without labels.

    Raises:
        AtomloomError: when a shard is missing, damaged, or of another chunk.
    """
    for chunk in paths.plan.chunks:
        converted, unlabelled = labelled_chunk(paths.layout, chunk.key)
        counted = len(converted.record) + len(converted.quarantine)
        require_whole(chunk, counted, paths.layout.structures(chunk.key))
        yield chunk, converted, unlabelled


@dataclass(frozen=True, eq=False)
class ChunkArrays:
    """Values of the targets of one chunk."""

    record: np.ndarray
    """[R] int64, row of the plan."""
    atoms: np.ndarray
    """[R] int64, number of atoms of each structure."""
    values: Mapping[str, np.ndarray]
    """[R, ...] or [A, ...] float64 by target, NaN where unknown."""

    @classmethod
    def of(cls, first: int, converted: ConvertedChunk, specs: Sequence[TargetSpec]) -> ChunkArrays:
        """Take the values of a chunk whose records begin with row `first` of the plan."""
        table = converted.table
        return cls(
            record=first + converted.record.astype(np.int64),
            atoms=np.diff(table.node_ptr),
            values={spec.name: values_in(table, spec) for spec in specs},
        )


def holds(table: StructureTable, spec: TargetSpec) -> bool:
    """Whether structures have a target as a property, in the target's shape."""
    values = table.properties.get(spec.name)
    if values is None or (spec.name in table.per_atom) != (spec.per == "atom"):
        return False
    return int(np.prod(values.shape[1:])) == int(np.prod(spec.shape))


def values_in(table: StructureTable, spec: TargetSpec) -> np.ndarray:
    """Values of a target, in the shape of the target; all NaN if the structures do not have it."""
    shape = spec.array_shape(len(table), len(table.numbers))
    if not holds(table, spec):
        return np.full(shape, np.nan)
    return table.properties[spec.name].reshape(shape)


def write_target_arrays(
    paths: RunPaths, specs: Sequence[TargetSpec], chunks: Sequence[ChunkArrays]
) -> None:
    """Write the files of some targets, from the values of all chunks."""
    for spec in specs:
        arrays: dict[str, np.ndarray | Blocks] = {
            "record": np.concatenate([chunk.record for chunk in chunks]),
            "values": Blocks([chunk.values[spec.name] for chunk in chunks]),
        }
        if spec.per == "atom":
            atoms = np.concatenate([chunk.atoms for chunk in chunks])
            arrays["node_ptr"] = np.concatenate([[0], np.cumsum(atoms)]).astype(np.int64)
        write_shard(paths.target_array(spec.name), arrays, _owner(paths, spec))


@dataclass(frozen=True, eq=False)
class TargetArray:
    """Values of one target, by record."""

    path: Path
    """Path of their file."""
    record: np.ndarray
    """[R] int64, rows of the plan."""
    node_ptr: np.ndarray | None
    """[R+1] int64, pointers, for a target per atom."""
    values: np.ndarray
    """[R, ...] or [A, ...] float64, NaN where unknown."""

    def of(self, records: np.ndarray, node_ptr: np.ndarray) -> np.ndarray:
        """Select the values of some records, [R, ...] or [A, ...], in their order.

        Args:
            records: rows of the plan.
            node_ptr: first atom of each of these records.

        Raises:
            AtomloomError: when a record is missing, or has another number of atoms.
        """
        order = np.argsort(self.record, kind="stable")
        found = np.searchsorted(self.record, records, sorter=order)
        rows = order[np.minimum(found, len(order) - 1)]
        if (strange := self.record[rows] != records).any():
            raise _unusable(self.path, f"has no record {records[strange][0]}")
        whole = np.array_equal(rows, np.arange(len(order)))  # then nothing has to be copied
        if self.node_ptr is None:
            return self.values if whole else self.values[rows]
        counts, first = np.diff(node_ptr), self.node_ptr[rows]
        if not np.array_equal(self.node_ptr[rows + 1] - first, counts):
            raise _unusable(self.path, "holds other numbers of atoms than the graphs")
        if whole:
            return self.values
        return self.values[np.repeat(first - node_ptr[:-1], counts) + np.arange(node_ptr[-1])]


def read_target_array(paths: RunPaths, spec: TargetSpec) -> TargetArray:
    """Read the values of a target.

    Raises:
        AtomloomError: when its file is missing or damaged, or holds something else.
    """
    path = paths.target_array(spec.name)
    try:
        arrays, attributes = read_shard(path)
    except AtomloomError as error:
        raise _unusable(path, error.what) from None
    own, of_atoms = _owner(paths, spec), spec.per == "atom"
    for name, wanted in own.items():
        if attributes.get(name) != wanted:
            raise _unusable(path, f"`{name}` is {attributes.get(name)}, not {wanted}")
    forms = {"record": Form(("R",), ("int64",))}
    forms |= {"node_ptr": Form(("R+1",), ("int64",))} if of_atoms else {}
    forms |= {"values": Form(("A" if of_atoms else "R", *spec.shape), ("float64",))}
    wrong = misfit(arrays, forms)
    if not wrong and len(np.unique(arrays["record"])) != len(arrays["record"]):
        wrong = "a record occurs twice"
    if not wrong and of_atoms:
        wrong = misled(arrays["node_ptr"], len(arrays["values"]), "node_ptr", least=1)
    if wrong:
        raise _unusable(path, f"makes no sense: {wrong}")
    return TargetArray(path, arrays["record"], arrays.get("node_ptr"), arrays["values"])


def load_target_arrays(
    paths: RunPaths, records: np.ndarray, node_ptr: np.ndarray
) -> dict[str, np.ndarray]:
    """Load the values of all targets that have an array, by name; for the arguments see `TargetArray.of`.

    Raises:
        AtomloomError: when a file is damaged or holds other structures, or is missing together with
            the shards from which it is made.
    """
    specs = array_targets(paths.config)
    if missing := [spec for spec in specs if not paths.target_array(spec.name).exists()]:
        chunks = [ChunkArrays.of(c.first, own, missing) for c, own, _ in labelled_chunks(paths)]
        write_target_arrays(paths, missing, chunks)
    return {spec.name: read_target_array(paths, spec).of(records, node_ptr) for spec in specs}


def _owner(paths: RunPaths, spec: TargetSpec) -> dict[str, str]:
    """Attributes that identify the target and data set of a file."""
    return {"kind": "target", "dataset": paths.dataset_key, "target": spec.name}


def _unusable(path: Path, what: str) -> AtomloomError:
    return AtomloomError(what, where=path, todo=again("split"))
