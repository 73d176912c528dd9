"""Stage `train`: from labelled graphs and a config to a trained model and its run card."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from atomloom.config import Config, dump_config
from atomloom.errors import AtomloomError, again
from atomloom.inference.model_file import read_model, weights_digest
from atomloom.pipeline.attempt import attempted
from atomloom.pipeline.outside_data import ENTRY, outside_data, told_of, training_overlap
from atomloom.pipeline.parent import Parent, begun_with_other_processes
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.run_card import (
    CARD,
    HISTORY,
    data_facts,
    environment,
    history_digest,
    level_of,
    now,
)
from atomloom.stages.labelled import load_labelled
from atomloom.stages.split import read_dataset, read_split
from atomloom.store.files import (
    file_digest,
    read_json,
    require_digest,
    write_sealed,
    write_spec,
    write_text,
)
from atomloom.training.trainer import Start, train

LARGE_BATCH = 32
FEW_STEPS = 20
"""Number of steps per epoch below which a potential in large batches learns slowly."""


def train_run(paths: RunPaths, log: Callable[[str], None], until: int | None = None) -> Path:
    """Train or resume the run of this config; return its folder.

    Args:
        paths: the paths of the run.
        log: takes one line at a time.
        until: stop after this epoch, as a run that is resumed later.

    Raises:
        AtomloomError: when index or split are missing, or the training itself fails.
    """
    paths.run.mkdir(parents=True, exist_ok=True)
    write_spec(paths.run, paths.run_spec)
    facts = {"config": paths.config.model_dump(mode="json"), **reported(paths.config)}
    with attempted(paths.run, facts):
        return _attempt(paths, facts, log, until)


def _attempt(
    paths: RunPaths, facts: dict[str, Any], log: Callable[[str], None], until: int | None
) -> Path:
    """Train or resume the run; `facts` go into its card."""
    started, run, config = now(), paths.run, paths.config
    data = load_labelled(paths)
    assert data.choice is not None  # as it has of graphs on disk
    log(data.choice.text)
    if advice := few_steps(config, len(data.split("train"))):
        log(advice)
    parent = paths.parent
    start = None
    if parent is not None:
        start = Start(parent.state_file, parent.key, parent.state, parent.processes)
    elif not (run / "state" / "last.ckpt").exists():
        for other in begun_with_other_processes(paths.run_spec, run.parent):
            log(
                f"note: {other.folder} is the same run but for its processes ({other.processes}), "
                f"and has {other.epochs:,} epochs: training.continue_from: {other.folder.name} goes on from there"
            )
    seen = _outside_data(paths)
    for line in told_of({ENTRY: seen}):
        log(line)
    result = train(data, config, run, log, until=until, start=start)
    if result is None:
        log(f"stopped after epoch {until}, as asked")
        return run
    if result.rank > 0:
        return run  # one of several processes reports
    origin = config.start_model
    level = level_of(result.device, config.training.processes, config.training.compile)
    tensors, _ = read_model(run / "model.safetensors")
    counts = read_split(paths)
    del counts["digests"]
    counts.pop("features", None)  # as many names as there are columns
    results = {
        "weights": weights_digest(tensors),
        "history": history_digest(run / HISTORY),
    }
    write_sealed(
        run / CARD,
        {
            "run_key": paths.run_key,
            "dataset": {"name": config.dataset.name, **counts},
            "keys": {
                "plan": paths.layout.plan_folder.name,
                "graph": paths.layout.graph_key,
                "index": paths.index.name,
                "dataset": paths.dataset_key,
                "run": paths.run_key,
            },
            **facts,
            **({} if parent is None else {"parent": _told(parent)}),
            **({} if origin is None else {"start_from": origin.spec}),
            **({} if not seen else {ENTRY: seen}),
            "model": {"name": config.model.name, "parameters": result.parameters},
            "epochs_run": result.epochs_run,
            "best_epoch": result.best_epoch,
            "seconds": result.seconds,
            "loader": asdict(data.choice),
            "data": {**data_facts(paths), "labelled_graphs": data.digest()},
            "digests": {HISTORY: file_digest(run / HISTORY)},
            "results": results,
            "determinism": {"level": level.name, "promise": level.promise},
            "started": started,
            "finished": now(),
            **environment(result.device, result.threads),
            **_evaluated(run / CARD, results),
        },
    )
    return run


def _evaluated(card: Path, results: dict[str, str]) -> dict[str, Any]:
    """Content that the evaluation has added to the card of a finished run, which is only reported again."""
    if not card.exists():
        return {}
    with suppress(AtomloomError, TypeError, AttributeError):  # a damaged card is written anew
        before = read_json(card, "results", "evaluated")
        if all(before["results"].get(name) == digest for name, digest in results.items()):
            return {"results": before["results"], "evaluated": before["evaluated"]}
    return {}


def _outside_data(paths: RunPaths) -> dict[str, Any]:
    """Content of the card on what the run sees besides its own data; empty for nothing."""
    config, origin = paths.config, paths.config.start_model
    listed = outside_data(config)
    overlap = None
    if origin is not None and origin.path is not None:
        overlap = training_overlap(origin.path, read_dataset(paths, ["id", "hash", "split"]))
    return ({"seen": listed} if listed else {}) | ({} if overlap is None else {"overlap": overlap})


def _told(parent: Parent) -> dict[str, Any]:
    """Content of the card on the run that this one continues."""
    return {"run": parent.folder.resolve().name, "epochs": parent.epochs, "state": parent.state}


def train_in_processes(layout: Layout, log: Callable[[str], None]) -> None:
    """Train by the command, since several processes are started by starting the same command again."""
    path = layout.merged_config
    write_text(path, dump_config(layout.config))
    command = [sys.executable, "-P", "-m", "atomloom", "train", "--config", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        last = ""
        for line in process.stderr or ():
            last = line.strip()
            log(last)
    if process.returncode:
        raise AtomloomError(f"training failed: {last}", where=path)


def few_steps(config: Config, structures: int) -> str:
    """Advice for a potential whose epochs are few steps; empty where there is none.

    Args:
        config: the whole config.
        structures: number of training structures.
    """
    training = config.training
    batch = training.batch.structures
    few = batch >= LARGE_BATCH and structures < FEW_STEPS * batch
    if config.model.kind != "potential" or training.optimizer == "lbfgs" or not few:
        return ""
    return (
        f"note: {structures:,} structures in batches of {batch} are {math.ceil(structures / batch)} steps per "
        "epoch; smaller batches learn more in as many epochs (docs/recipes.md)"
    )


def read_history(paths: RunPaths) -> pd.DataFrame:
    """Read the history, one row per epoch.

    Raises:
        AtomloomError: when the table is missing or truncated.
    """
    card = read_json(paths.run / CARD, "digests", todo=again("train"))
    require_digest(paths.run / HISTORY, card["digests"].get(HISTORY), again("train"))
    return pd.read_csv(paths.run / HISTORY)


def reported(config: Config) -> dict[str, Any]:
    """Names under which errors are reported, with their units."""
    targets = config.targets
    if all(spec.source == "output" for spec in targets):
        return {"target": config.dataset.target, "unit": config.dataset.unit}
    units = {spec.reported: spec.reported_unit for spec in targets}
    return {"target": list(units), "unit": units}
