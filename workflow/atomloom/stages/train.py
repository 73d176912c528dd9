"""Stage `train`: the labelled graphs and the config become a trained model and its run card."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.config import Config
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.data.placement import Placement, choose_loader
from atomloom.errors import again
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.store import GraphStore
from atomloom.pipeline.paths import RunPaths
from atomloom.pipeline.run_card import HISTORY, environment, now
from atomloom.stages.index import read_indexed_records
from atomloom.stages.label import labelled_chunk
from atomloom.stages.labels import array_targets
from atomloom.stages.split import read_dataset, read_split
from atomloom.store.files import file_digest, read_json, require_digest, write_sealed, write_spec
from atomloom.training.objectives.potential import REPORTED
from atomloom.training.trainer import train


def train_run(places: RunPaths, log: Callable[[str], None]) -> Path:
    """Train, or go on with, the run of this config; return its folder.

    Raises:
        AtomloomError: when index or split are missing, or the training itself fails.
    """
    started = now()
    run = places.run
    run.mkdir(parents=True, exist_ok=True)
    write_spec(run, places.run_spec)
    data = load_labelled(places)
    log(data.choice.text)
    result = train(data, places.config, run, log)
    config = places.config
    if result.rank > 0:
        return run  # one of several processes reports
    counts = read_split(places)
    del counts["digests"]
    write_sealed(
        run / "run.json",
        {
            "run_key": places.run_key,
            "dataset": {"name": config.dataset.name, **counts},
            "keys": {
                "plan": places.layout.plan_folder.name,
                "graph": places.layout.graph_key,
                "index": places.index.name,
                "dataset": places.dataset_key,
                "run": places.run_key,
            },
            "config": config.model_dump(mode="json"),
            **reported(config),
            "model": {"name": config.model.name, "parameters": result.parameters},
            "epochs_run": result.epochs_run,
            "best_epoch": result.best_epoch,
            "seconds": result.seconds,
            "loader": asdict(data.choice),
            "digests": {HISTORY: file_digest(run / HISTORY)},
            "started": started,
            "finished": now(),
            **environment(result.device, result.threads),
        },
    )
    return run


def read_history(places: RunPaths) -> pd.DataFrame:
    """A row an epoch.

    Raises:
        AtomloomError: when the table is missing or cut.
    """
    card = read_json(places.run / "run.json", "digests", todo=again("train"))
    require_digest(places.run / HISTORY, card["digests"].get(HISTORY), again("train"))
    return pd.read_csv(places.run / HISTORY)


def reported(config: Config) -> dict[str, Any]:
    """What errors are reported of, and its unit."""
    if config.model.kind == "property":
        return {"target": config.dataset.target, "unit": config.dataset.unit}
    units = dict(REPORTED[name] for name in config.dataset.target)
    return {"target": list(units), "unit": units}


def load_labelled(places: RunPaths) -> LabelledGraphs:
    """All labelled graphs with their targets, in the order of the index, and the rows of each split."""
    index = read_indexed_records(places)
    dataset = read_dataset(places)
    source = OnDiskGraphs(GraphStore(places.index))
    choice = _choice_of_loader(places, source)
    table: GraphTable | OnDiskGraphs = source
    if choice.window is None:
        table = GraphStore(places.index).load()
        labelled = index["record"].isin(dataset["record"]).to_numpy()
        if not labelled.all():
            table, index = table.take(np.flatnonzero(labelled)), index[labelled]
    row_of = pd.Series(np.arange(len(index)), index=index["record"])
    known = dataset[dataset["record"].isin(row_of.index)]
    arrays = array_targets(places.config)
    columns = [name for name in places.config.dataset.target if name not in arrays]
    rows = row_of[known["record"]].to_numpy()

    def by_graph(names: list[str]) -> np.ndarray:
        """[S, len(names)] columns of the data set, NaN where a graph has no row in it."""
        values = np.full((len(index), len(names)), np.nan)
        values[rows] = known[names].to_numpy(np.float64)
        return values

    given = places.config.dataset.global_features
    return LabelledGraphs(
        table=table,
        targets=by_graph(columns),
        rows={name: rows[(known["split"] == name).to_numpy()] for name in ("train", "val", "test")},
        globals=by_graph(given) if given else None,
        choice=choice,
        **{name: _array_target(places, table, row_of, name) for name in arrays},
    )


def _choice_of_loader(places: RunPaths, source: OnDiskGraphs) -> Placement:
    """Where the graphs are held; as written down when the run began, by whichever process was first.

    The order of batches depends on it, so that a run that goes on, and all processes of one, keep it.
    """
    settings = places.config.training
    path = places.run / "state" / "loader.json"
    begun = None
    if path.exists():
        names = [item.name for item in fields(Placement)]
        content = read_json(path, *names, todo=f"remove {path.parent} to train from the beginning")
        begun = Placement(**{name: content[name] for name in names})
    gigabytes = settings.loader.memory_gb
    choice = choose_loader(
        source,
        settings.batch,
        mode=settings.loader.mode,
        budget=None if gigabytes is None else int(1e9 * gigabytes),
        processes=settings.devices,
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


def _array_target(
    places: RunPaths, table: GraphTable | OnDiskGraphs, row_of: pd.Series, name: str
) -> np.ndarray:
    """Forces [A, 3] or stress [S, 3, 3] of the graphs of a table, from the shards of structures.

    Args:
        places: where the shards are.
        table: the graphs of the index.
        row_of: row of the table by record.
        name: `forces` or `stress`.
    """
    shape = (len(table.numbers), 3) if name == "forces" else (len(table), 3, 3)
    values = np.full(shape, np.nan)
    for chunk in places.plan.chunks:
        converted, _ = labelled_chunk(places.layout, chunk.key)
        own = converted.table.properties.get(name)
        if own is None:
            continue
        rows = row_of.reindex(chunk.first + converted.record.astype(np.int64)).to_numpy(np.float64)
        for place, row in enumerate(rows):
            if np.isnan(row):
                continue  # has no graph
            target, source = int(row), place
            if name == "forces":
                target = slice(*table.node_ptr[target : target + 2])
                source = slice(*converted.table.node_ptr[place : place + 2])
            values[target] = own[source].reshape(values[target].shape)
    return values
