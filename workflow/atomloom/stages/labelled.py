"""Labelled data: the graphs of an index with their targets and splits.

Training, evaluation and benchmarks load them here. Labels of a graph are found by record, in
`dataset.parquet` and in the target arrays alongside it; no shard of structures is read.

Legend: S graphs of the table, D rows of the data set that have a graph.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from atomloom.data.dataset import LabelledGraphs
from atomloom.data.on_disk import GraphSource, OnDiskGraphs
from atomloom.data.placement import Placement, choose_loader
from atomloom.errors import again
from atomloom.graphs.store import GraphStore
from atomloom.pipeline.paths import RunPaths
from atomloom.stages.index import read_indexed_records
from atomloom.stages.labels import array_targets
from atomloom.stages.split import global_names, read_dataset
from atomloom.stages.target_arrays import load_target_arrays
from atomloom.store.files import read_json, write_sealed


@dataclass(frozen=True, eq=False)
class LabelledRecords:
    """Data set with the rows of its table."""

    data: LabelledGraphs
    """All labelled graphs, in the order of the index."""
    frame: pd.DataFrame
    """[D] rows of `dataset.parquet`."""
    rows: np.ndarray
    """[D] int64, row of each of them in `data.table`."""


def load_labelled(places: RunPaths) -> LabelledGraphs:
    """Load all labelled graphs with their targets, in the order of the index, and the rows of each split.

    Raises:
        AtomloomError: as `load_records`.
    """
    # Ids, hashes and formulas of millions of structures take more time and memory than all that is needed here.
    return load_records(places, described=False).data


def load_records(places: RunPaths, described: bool = True) -> LabelledRecords:
    """Load the labelled graphs with the rows of the data set to which they belong.

    Args:
        places: paths of the run.
        described: whether the rows have all columns, or only record, split, targets and global features.

    Raises:
        AtomloomError: when index or split are missing or damaged, or the graphs fit nowhere.
    """
    records = read_indexed_records(places)["record"].to_numpy()
    given = global_names(places)
    columns = [one.name for one in places.config.targets if one.is_column]
    frame = read_dataset(places, None if described else ["record", "split", *columns, *given])
    source = OnDiskGraphs(GraphStore(places.index))
    choice = _choice_of_loader(places, source)
    table: GraphSource = source
    if choice.window is None:
        table = GraphStore(places.index).load()
        labelled = np.isin(records, frame["record"])
        if not labelled.all():
            table, records = table.take(np.flatnonzero(labelled)), records[labelled]
    row_of = pd.Series(np.arange(len(records)), index=records)
    frame = frame[frame["record"].isin(row_of.index)].reset_index(drop=True)
    rows = row_of[frame["record"]].to_numpy()

    def by_graph(names: list[str]) -> np.ndarray:
        """[S, len(names)] columns of the data set, NaN where a graph has no row in it."""
        values = np.full((len(records), len(names)), np.nan)
        values[rows] = frame[names].to_numpy(np.float64)
        return values

    isolated = {}
    if places.config.uses_isolated_atoms:
        isolated = read_json(places.split / "split.json", "isolated_atoms", todo=again("split"))[
            "isolated_atoms"
        ]
    data = LabelledGraphs(
        table=table,
        targets=by_graph(columns),
        rows={
            name: rows[(frame["split"] == name).to_numpy()] for name in places.config.split.names
        },
        arrays=load_target_arrays(places, records, table.node_ptr),
        specs=array_targets(places.config),
        global_features=by_graph(given) if given else None,
        global_names=tuple(given),
        choice=choice,
        isolated_atoms=isolated,
    )
    return LabelledRecords(data, frame, rows)


def _recorded_choice(path: Path) -> Placement | None:
    """Placement as recorded in a file; None without the file."""
    if not path.exists():
        return None
    names = [item.name for item in fields(Placement)]
    content = read_json(path, *names, todo=f"remove {path.parent} to train from the beginning")
    return Placement(**{name: content[name] for name in names})


def _choice_of_loader(places: RunPaths, source: OnDiskGraphs) -> Placement:
    """Placement of the graphs, as recorded when the run began by whichever process was first.

    The order of batches depends on it, so that a resumed run, all processes of a run, and a run that
    continues another keep it.
    """
    settings, parent = places.config.training, places.parent
    path = places.run / "state" / "loader.json"
    begun = _recorded_choice(path)
    if begun is None and parent is not None:
        choice = _recorded_choice(parent.folder / "state" / "loader.json")
        if choice is not None:
            write_sealed(path, asdict(choice))
            begun = choice
    gigabytes = settings.loader.memory_gb
    choice = choose_loader(
        source,
        settings.batch,
        mode=settings.loader.mode,
        budget=None if gigabytes is None else int(1e9 * gigabytes),
        processes=settings.devices,  # of this node, which share its memory
        begun=begun,
    )
    if begun is None:
        own = path.with_name(f"loader-{os.getpid()}.json")
        write_sealed(own, asdict(choice))
        try:
            os.link(own, path)
        except FileExistsError:
            return _choice_of_loader(places, source)
        finally:
            own.unlink()
    return choice
