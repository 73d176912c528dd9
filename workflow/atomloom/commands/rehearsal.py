"""Rehearsal of a whole run on a sample of its records, in a temporary folder: what each stage takes.

Stages are the real ones, each in a process of its own as in the workflow, so that its time and memory are those of
a job. Nothing is written to results or store. The split of the sample is one by ratio, whatever the config's is.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.config import Batching, Config, dump_config, load_config, parse_config
from atomloom.errors import AtomloomError
from atomloom.graphs.store import read_graphs
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.run_card import CARD, HISTORY
from atomloom.pipeline.stage_table import STAGES
from atomloom.pipeline.timing import read_timing
from atomloom.stages.convert import read_chunk
from atomloom.stages.plan import write_part
from atomloom.store.files import read_json, write_text

Log = Callable[[str], None]

SAMPLE = 500
"""Number of records of a rehearsal, where batches are not so large that they need more."""
MOST_SAMPLE = 5000
TAUGHT = 32
"""Number of records where a teacher has to label them, or features are computed."""
BATCHES = 3
"""Number of batches per epoch."""
FEWEST = 128
"""Min number of training structures, as far as the sample has so many."""
EPOCHS = 2
"""Number of epochs, of which the first warms up."""
MOST_THREADS = 4
"""Max number of threads of a rehearsal: a login node has more cores than a job should ask for."""


@dataclass(frozen=True)
class Used:
    """Measured use of one job."""

    seconds: float
    """Time of the process, its start included."""
    megabytes: float
    """Peak memory."""
    files: int
    """Number of files that it leaves."""
    size: int
    """Bytes of these files."""


@dataclass(frozen=True)
class Trained:
    """Measured use of a training, of which the last epoch counts."""

    start: float
    """Seconds of all but the epochs."""
    per_structure: float
    """Seconds per training structure."""
    per_validation: float
    """Seconds per validation structure."""
    step: float
    """Seconds per optimiser step."""
    megabytes: float
    threads: int
    """CPU threads."""
    device: str
    parameters: int


@dataclass
class Rehearsal:
    """Measured use of all stages."""

    records: int
    """Number of records of the sample."""
    structures: int = 0
    """Number of them that have a graph."""
    structure_bytes: float = 0.0
    """Bytes of a structure in memory."""
    graph_bytes: float = 0.0
    """Bytes of a graph in memory."""
    used: dict[str, Used] = field(default_factory=dict)
    """Stage -> use of one job."""
    trained: Trained | None = None
    """Training; None if the rehearsal did not come so far."""
    one_thread: Trained | None = None
    """The same with one thread; None if there was no choice."""
    shares: dict[int, Trained] = field(default_factory=dict)
    """Number of processes -> training of one of them, with its share of each batch."""
    failure: str = ""
    """Reason why it did not come to the end."""


def rehearse(layout: Layout, plan: Plan, devices: int, log: Log) -> Rehearsal:
    """Run all stages on a sample, evenly spread over the records.

    Args:
        layout: paths of the project.
        plan: its plan.
        devices: number of processes up to which one of several is tried with its share of a batch; 0 for none.
        log: takes one line at a time.
    """
    config = layout.config
    wanted = max(SAMPLE, math.ceil(1.5 * BATCHES * config.training.batch.structures))
    count = TAUGHT if config.teacher or config.features else min(wanted, MOST_SAMPLE)
    rows = np.unique(np.linspace(0, plan.records - 1, min(count, plan.records)).astype(int))
    found = Rehearsal(len(rows))
    with tempfile.TemporaryDirectory(prefix="atomloom-") as folder:
        stage = _Stage(Path(folder), parse_config(sample_content(config, len(rows), Path(folder))))
        stage.paths = RunPaths(stage.layout, write_part(layout, plan, rows, stage.layout))
        try:
            _run(stage, found, log)
            for number in _doubled(devices):
                if number == config.training.processes and found.trained is not None:
                    found.shares[number] = found.trained
                    continue
                log(f"training with the share of one of {number} processes")
                found.shares[number] = stage.share(config.training.batch, number, found.trained)
        except AtomloomError as error:
            found.failure = str(error)
    return found


def _run(stage: _Stage, found: Rehearsal, log: Log) -> None:
    log(f"rehearsing all stages on {found.records:,} records in a temporary folder")
    paths, training = stage.paths, stage.config.training
    (key,) = paths.plan.chunk_keys
    for name in ("convert", "label", "features", "graphs"):
        if STAGES[name].wanted(stage.config):
            found.used[name] = stage.run(name, "--chunk", key)
    table = read_graphs(stage.layout.graphs(key))
    found.structures = len(table)
    if not len(table):
        raise AtomloomError("no structure of the sample has a graph")
    found.structure_bytes = _bytes(read_chunk(stage.layout.structures(key)).table) / len(table)
    found.graph_bytes = _bytes(table) / len(table)
    for name in ("index", "split"):
        found.used[name] = stage.run(name)
    threads = training.threads or min(MOST_THREADS, _processors())
    log(f"training {EPOCHS} epochs of a part of them: {stage.config.model.name}, {threads} threads")
    found.used["train"] = stage.run("train", "--threads", str(threads))
    found.trained = stage.trained(paths, found.used["train"])
    found.used["evaluate"] = stage.run("evaluate", "--threads", str(threads))
    if threads > 1 and not training.threads and found.trained.device == "cpu":
        with stage.changed(seed=training.seed ^ 1) as other:
            found.one_thread = stage.trained(other, stage.run("train", "--threads", "1"))


def share_of_batch(bounds: Batching, processes: int) -> dict[str, int | None]:
    """Bounds of the part of a batch that one of several processes has."""
    return {
        name: None if most is None else max(1, math.ceil(most / processes))
        for name, most in bounds.model_dump().items()
    }


def _doubled(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself; nothing for none."""
    return sorted({2**k for k in range(most.bit_length())} | {most}) if most else []


def sample_content(config: Config, records: int, folder: Path) -> dict[str, Any]:
    """Config of a rehearsal, as plain values."""
    content = config.model_dump(mode="json")
    training = config.training
    train = min(0.8, max(BATCHES * training.batch.structures, FEWEST) / records)
    ratios = [train, 0.125 * train]
    content |= {"sweep": None, "published": None, "paths": {"results": str(folder / "results")}}
    content["paths"]["store"] = str(folder / "store")
    content["split"] = {
        "kind": "ratio",
        "ratios": [*ratios, max(0.0, 1 - sum(ratios))],
        "duplicates": "report",
        "duplicate_tolerance": config.split.duplicate_tolerance,
    }
    content["dataset"]["checks"]["max_fraction"] = 1.0
    # One process, which has its part of each batch: several on this machine would share its cores.
    content["training"] |= {
        "stop_after": EPOCHS if training.last_epoch > EPOCHS else training.stop_after,
        "early_stopping": None,
        "continue_from": None,
        "keep_every": None,
        "loggers": [],
        "devices": 1,
        "nodes": 1,
        "strategy": "auto",
        "batch": share_of_batch(training.batch, training.processes),
        "device": "cpu" if without_its_gpu(config) else training.device,
    }
    if config.uses_isolated_atoms:  # of which the sample may have none
        content["training"]["potential"]["reference_energies"] = "fit"
    return content


def without_its_gpu(config: Config) -> bool:
    """Whether the config wants a GPU and this machine has none that can be used."""
    if config.training.device != "cuda":
        return False
    import torch

    return not torch.cuda.is_available()


class _Stage:
    """Stages on the sample, as commands.

    Args:
        folder: temporary folder of the rehearsal.
        config: its config.
    """

    paths: RunPaths

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config, self.layout = folder, config, Layout(config)
        self.file = folder / "config.yaml"
        write_text(self.file, dump_config(config))

    def run(self, name: str, *options: str) -> Used:
        """Run one stage and measure it.

        Raises:
            AtomloomError: with the reason, when it fails.
        """
        before, log = set(self._files()), self.layout.logs / f"{name}.log"
        command = [sys.executable, "-P", "-m", "atomloom", name, "--config", str(self.file)]
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, "--log", str(log), *options], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - begun
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise AtomloomError(f"the sample fails in {last.removeprefix('atomloom ')}")
        new = [path.stat().st_size for path in self._files() if path not in before]
        stage = STAGES[name]
        assert stage.job is not None
        job = stage.job(self._paths(), self.paths.plan.chunk_keys[0] if stage.per_chunk else "")
        timing = read_timing(self.layout.timing(name, job))
        if timing is None:
            raise AtomloomError(f"{name} has not told its memory")
        return Used(seconds, timing[1], len(new), sum(new))

    @contextmanager
    def changed(self, **training: Any) -> Iterator[RunPaths]:
        """Change the config of training inside the block; yields the paths of that run."""
        content = self.config.model_dump(mode="json")
        content["training"] |= training
        write_text(self.file, dump_config(parse_config(content)))
        try:
            yield self._paths()
        finally:
            write_text(self.file, dump_config(self.config))

    def share(self, bounds: Batching, processes: int, like: Trained | None) -> Trained:
        """Use of a training of one of several processes, with its share of each batch."""
        assert like is not None
        with self.changed(batch=share_of_batch(bounds, processes)) as paths:
            return self.trained(paths, self.run("train", "--threads", str(like.threads)))

    def trained(self, paths: RunPaths, used: Used) -> Trained:
        """Use of a training that has run."""
        history = pd.read_csv(paths.run / HISTORY)
        counts, last = read_json(paths.split / "split.json"), history.iloc[-1]
        steps = last["step"] - (history["step"].iloc[-2] if len(history) > 1 else 0)
        validation = last["validation_seconds"]
        card = read_json(paths.run / CARD)
        return Trained(
            start=max(0.0, used.seconds - float(history["seconds"].sum())),
            per_structure=float(last["seconds"] - validation) / max(1, counts["train"]),
            per_validation=float(validation) / max(1, counts["val"]),
            step=float(last["seconds"] - validation) / max(1, int(steps)),
            megabytes=used.megabytes,
            threads=card["environment"]["threads"],
            device=card["environment"]["device"],
            parameters=card["model"]["parameters"],
        )

    def _paths(self) -> RunPaths:
        """Paths of the run of the config as it is at present."""
        return RunPaths(Layout(load_config(self.file)), self.paths.plan)

    def _files(self) -> list[Path]:
        folders = (self.folder / "results", self.folder / "store")
        return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def _bytes(table: Any) -> int:
    """Bytes of the arrays of a table."""
    return sum(array.nbytes for array in vars(table).values() if isinstance(array, np.ndarray))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
