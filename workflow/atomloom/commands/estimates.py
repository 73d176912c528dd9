"""Estimates of what all jobs of a config take, rule by rule: from jobs that have finished, else from a rehearsal.

Data in memory grow with the number of records, and so do they in the estimates: structures are held once by
the split, graphs twice while training and evaluation join the shards. Everything else is as in the rehearsal.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atomloom.commands.cost import Cost, estimate_cost
from atomloom.commands.options import Log
from atomloom.commands.rehearsal import Rehearsal, Trained, Used, rehearse, without_its_gpu
from atomloom.config import Config, parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths
from atomloom.pipeline.resources import DEFAULTS, Ask, resource_text, trials_cost_alike, work_of
from atomloom.pipeline.run_card import CARD
from atomloom.pipeline.stage_table import STAGES, jobs_to_do
from atomloom.pipeline.timing import read_timing
from atomloom.store.files import read_json, write_text

CAUTION = 1.5
"""Factor of memory that jobs ask for, over what they are expected to take."""
SNAKEMAKE_MB = 400
"""Megabytes for the processes of Snakemake inside a job on a cluster, about 260 by themselves."""
SLOWER = 2.0
"""Factor of time that jobs ask for: nodes differ, and file systems have bad days."""
START_MINUTES = 10
"""Minutes that each job asks for besides."""
COPIES = 2.0
"""Copies of all graphs in memory while shards are joined."""
ROW_BYTES = 2500
"""Bytes in memory per row of tables of a data set, with its names and labels."""
MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """Expected use of one rule's jobs."""

    jobs: int
    todo: int
    """Number of jobs that are not done yet."""
    seconds: float
    """Time of the longest job."""
    megabytes: float
    """Peak memory of the largest job."""
    files: int
    """Number of files of all jobs together."""
    size: float
    """Bytes of these files."""
    cpus: int | None = None
    """Threads that pay; None where it was not tried, or the config says."""
    seen: int = 0
    """Number of finished jobs that time and memory are from; 0: from the rehearsal."""
    asks: bool = True
    """Whether jobs ask for this, and not for the defaults: a GPU's time cannot be measured without one."""

    @property
    def ask(self) -> Ask:
        """Resources that jobs ask for, with caution."""
        memory = CAUTION * self.megabytes * MIB / 1e6 + SNAKEMAKE_MB
        minutes = SLOWER * self.seconds / 60 + START_MINUTES
        return Ask(100 * math.ceil(memory / 100), 5 * math.ceil(minutes / 5), self.cpus)


def print_costs(paths: RunPaths, file: Path | None, devices: int, log: Log) -> None:
    """Print what all jobs will take, measured on a sample and on jobs that have finished.

    Args:
        paths: paths of the run, with a plan.
        file: where to write what jobs should ask a cluster for; None for nowhere.
        devices: max number of processes of a preview of training; 0 for none.
        log: takes one line at a time.

    Raises:
        AtomloomError: when not one record of the sample can be used.
    """
    cost = estimate_cost(paths.layout, paths.plan)
    for line in cost.lines(os.cpu_count() or 1):
        print(line, flush=True)
    found = rehearse(paths.layout, paths.plan, devices, log)
    estimates = estimate_jobs(paths, cost, found)
    print("\n" + "\n".join(table(estimates)))
    if found.failure:
        print(f"not everything could be tried: {found.failure}")
    if found.shares:
        print("\n" + "\n".join(preview(paths, found, estimates["train"])))
    if file is not None:
        asks = asked(paths.config, estimates)
        write_text(file, resource_text(paths.plan.records, asks, paths.config))
        log(f"{', '.join(asks)}: written to {file}")


def estimate_jobs(paths: RunPaths, cost: Cost, found: Rehearsal) -> dict[str, Estimate]:
    """Expected use by rule; rules of which nothing is known are left out."""
    todo: dict[str, int] = {}
    for job in jobs_to_do(paths):
        todo[job.stage] = todo.get(job.stage, 0) + 1
    whole = _extrapolated(paths, cost, found)
    chunks = len(paths.plan.chunk_keys)
    seen = finished_jobs(paths)
    estimates = {"plan": of_plan(paths)}
    for name, stage in STAGES.items():
        if name not in whole:
            continue
        # The rehearsal has one job for all parts.
        used, parts = whole[name], len(stage.parts(paths))
        times = chunks if stage.per_chunk else 1
        files = times * found.used[name].files
        estimate = Estimate(
            *(parts * times, todo.get(name, 0), used.seconds / parts, used.megabytes),
            *(files, used.size),
        )
        if finished := seen.get(name):
            estimate = replace(
                estimate,
                seconds=max(seconds for seconds, _ in finished),
                megabytes=max(megabytes for _, megabytes in finished),
                seen=len(finished),
            )
        if name == "train":
            estimate = replace(estimate, cpus=threads_that_pay(paths.config, found))
        of_gpu = name in ("train", "evaluate") and without_its_gpu(paths.config)
        estimates[name] = replace(estimate, asks=not of_gpu or bool(finished))
    return estimates


def of_plan(paths: RunPaths) -> Estimate:
    """Use of the plan, which has just been made."""
    layout = paths.layout
    seconds, megabytes = read_timing(layout.timing("plan", "plan")) or (0.0, 0.0)
    sizes = [path.stat().st_size for path in layout.plan_folder.iterdir()]
    return Estimate(1, 0, seconds, megabytes, len(sizes), sum(sizes), seen=1)


def asked(config: Config, estimates: Mapping[str, Estimate]) -> dict[str, Ask]:
    """Resources by rule for `resources.yaml`, those of a sweep among them."""
    asks = {rule: estimate.ask for rule, estimate in estimates.items() if estimate.asks}
    if config.sweep is None or not {"train", "evaluate"} <= asks.keys():
        return asks
    ask = Ask(
        max(asks["train"].mem_mb, asks["evaluate"].mem_mb),
        asks["train"].runtime + asks["evaluate"].runtime,
    )
    if not trials_cost_alike(config):  # of which the largest is not known
        usual = DEFAULTS["trial"]
        ask = Ask(max(ask.mem_mb, usual.mem_mb), max(ask.runtime, usual.runtime))
    refit = {"refit": ask} if config.sweep.refit else {}
    return asks | {"trial": ask} | refit


def threads_that_pay(config: Config, found: Rehearsal) -> int | None:
    """Cores of a training: those tried if they are worth it, else one; None where there was no choice."""
    one, many = found.one_thread, found.trained
    if one is None or many is None or config.training.processes > 1:
        return None
    gain = one.per_structure / max(many.per_structure, 1e-12)
    return many.threads if gain > 1 + 0.4 * (many.threads - 1) else 1


def training_seconds(config: Config, trained: Trained, counts: tuple[float, float]) -> float:
    """Seconds of all epochs.

    Args:
        config: the config.
        trained: use of a training of one process.
        counts: training and validation structures.
    """
    train, val = (count / config.training.processes for count in counts)
    epoch = train * trained.per_structure + val * trained.per_validation
    return trained.start + config.training.last_epoch * epoch


def split_counts(paths: RunPaths, structures: float) -> tuple[float, float]:
    """Numbers of training and validation structures; expected ones before the split is made."""
    try:
        counts = read_json(paths.split / "split.json", "train", "val")
        return counts["train"], counts["val"]
    except (AtomloomError, OSError):
        train, val, _ = paths.config.split.ratios
        return train * structures, val * structures


def _extrapolated(paths: RunPaths, cost: Cost, found: Rehearsal) -> dict[str, Used]:
    """Use of the largest job of each stage, and bytes of all jobs together, from the rehearsal."""
    plan, config = paths.plan, paths.config
    share = found.structures / found.records
    structures = plan.records * share
    largest = max(chunk.count for chunk in plan.chunks)
    more, more_in_chunk = (
        max(0.0, structures - found.structures),
        max(0.0, (largest - found.records) * share),
    )
    graphs = found.graph_bytes / MIB
    if config.training.loader.memory_gb is not None:
        held = min(COPIES * more * graphs, config.training.loader.memory_gb * 1e9 / MIB)
    else:
        held = COPIES * more * graphs
    rows = more * ROW_BYTES / MIB
    copies = config.training.devices  # processes of this node, each with its own
    memory = {
        "convert": 3 * more_in_chunk * found.structure_bytes / MIB,
        "label": 3 * more_in_chunk * found.structure_bytes / MIB,
        "features": 3 * more_in_chunk * found.structure_bytes / MIB,
        "graphs": COPIES * more_in_chunk * graphs,
        "index": COPIES * more_in_chunk * graphs + rows,
        "split": more * found.structure_bytes / MIB + rows,
        "train": held + rows,
        "evaluate": held + rows,
    }
    start = max(0.0, _used(found, "convert") - found.records * cost.convert_ms / 1e3)
    per_record = {
        "convert": cost.convert_ms / 1e3,
        "graphs": share * cost.graphs_ms / 1e3,
    }
    whole = {}
    for name, used in found.used.items():
        chunked = STAGES[name].per_chunk
        if name in per_record:
            seconds = start + largest * per_record[name]
        elif name == "train" and found.trained is not None:
            seconds = training_seconds(config, found.trained, split_counts(paths, structures))
        else:
            fixed = min(
                found.trained.start if name == "evaluate" and found.trained else start,
                0.9 * used.seconds,
            )
            count = largest if chunked else plan.records
            seconds = fixed + (used.seconds - fixed) * count / found.records
        growth = plan.records / found.records
        size = used.size * (1 if name == "train" else growth)
        times = copies if name == "train" else 1
        megabytes = times * (used.megabytes + memory[name])
        whole[name] = replace(used, seconds=seconds, megabytes=megabytes, size=int(size))
    return whole


def _used(found: Rehearsal, name: str) -> float:
    return found.used[name].seconds if name in found.used else 0.0


def finished_jobs(paths: RunPaths) -> dict[str, list[tuple[float, float]]]:
    """Seconds and MiB of finished jobs by stage, of the same work; of training, those of other runs too."""
    layout = paths.layout
    found: dict[str, list[tuple[float, float]]] = {}
    for name, stage in STAGES.items():
        if stage.job is None or name in ("train", "evaluate"):
            continue
        keys = paths.plan.chunk_keys if stage.per_chunk else [""]
        timings = [
            read_timing(layout.timing(name, stage.job(part, key)))
            for part in stage.parts(paths)
            for key in keys
        ]
        found[name] = [timing for timing in timings if timing is not None]
    for run, config, seconds in _finished_runs(paths):
        for name in ("train", "evaluate"):
            timing = read_timing(layout.timing(name, run))
            if timing is not None and work_of(config, name) == work_of(paths.config, name):
                # A training that was resumed has timed its last attempt alone.
                found.setdefault(name, []).append(
                    (max(seconds, timing[0]) if name == "train" else timing[0], timing[1])
                )
    return found


def _finished_runs(paths: RunPaths) -> Iterator[tuple[str, Config, float]]:
    """Key, config and seconds of training of the finished runs of as many records."""
    for card in sorted((paths.layout.results / "runs").glob(f"*/{CARD}")):
        try:
            content = read_json(card, "config", "seconds", "data")
            alike = content["config"]["model"]["name"] == paths.config.model.name
            # Reading a config that names a class imports its module: only that of the user's own config.
            if alike and content["data"]["records"] == paths.plan.records:
                yield card.parent.name, parse_config(content["config"]), float(content["seconds"])
        except (AtomloomError, KeyError, TypeError, ValueError):
            continue  # a card of another version tells nothing


# --- as text ---


def table(estimates: Mapping[str, Estimate]) -> Iterator[str]:
    """Lines of a table, rule by rule."""
    yield f"{'rule':<10}{'jobs':>7}{'to do':>7}{'s per job':>11}{'MB':>8}{'files':>8}{'MB on disk':>12}   asks for"
    for rule, one in estimates.items():
        ask = one.ask if one.asks else DEFAULTS[rule]
        cores = f", {ask.cpus} core{'s' * (ask.cpus > 1)}" if ask.cpus else ""
        origin = f"  (from {one.seen:,} finished)" if one.seen else ""
        origin = origin if one.asks else "  (by default: measured without its GPU)"
        yield (
            f"{rule:<10}{one.jobs:>7,}{one.todo:>7,}{one.seconds:>11,.1f}{one.megabytes * MIB / 1e6:>8,.0f}"
            f"{one.files:>8,}{one.size / 1e6:>12,.1f}   {ask.mem_mb:,} MB, {ask.runtime:,} min{cores}{origin}"
        )
    files, outputs = (
        sum(one.files for one in estimates.values()),
        sum(one.jobs for one in estimates.values()),
    )
    kept = sum(
        one.files for rule, one in estimates.items() if rule in STAGES and STAGES[rule].per_chunk
    )
    yield f"files: {files:,}, of which {kept:,} in the store; besides, Snakemake keeps one per output, and a cluster a log for each of {outputs:,} jobs"


def preview(paths: RunPaths, found: Rehearsal, estimate: Estimate) -> Iterator[str]:
    """Lines of a preview of training on several processes."""
    base = found.shares[1]
    structures = paths.plan.records * found.structures / found.records
    counts, batch = split_counts(paths, structures), paths.config.training.batch.structures
    whole = base.parameters * 4 / 1e6
    yield f"{'processes':>9}{'structures each':>17}{'ms per step':>13}{'s per epoch':>13}{'speed':>7}{'MB each':>9}{'MB in all':>11}"
    first = _epoch_seconds(base, counts, 1)
    held = max(0.0, estimate.megabytes / paths.config.training.devices - base.megabytes)
    for number, one in found.shares.items():
        seconds, each = _epoch_seconds(one, counts, number), (one.megabytes + held) * MIB / 1e6
        yield (
            f"{number:>9}{math.ceil(batch / number):>17,}{1e3 * one.step:>13,.1f}{seconds:>13,.2f}"
            f"{first / seconds:>7.2f}{each:>9,.0f}{each * number:>11,.0f}"
        )
    most = max(found.shares)
    yield (
        f"measured: one process on this machine ({base.device}, {base.threads} thread{'s' * (base.threads > 1)}) with its "
        "part of each batch, on a sample"
    )
    if most > 1:
        yield (
            f"not measured, and not in these times: {most} processes at once, and the exchange of gradients, "
            f"{2 * (most - 1) / most * whole:,.1f} MB per process and step"
        )
    if base.device == "cpu":
        yield (
            "MB is memory of the machine. On GPUs other times hold; `atomloom bench batch` there finds what fits. "
            "Graphs are held once by each process"
        )


def _epoch_seconds(one: Trained, counts: Sequence[float], processes: int) -> float:
    return (counts[0] * one.per_structure + counts[1] * one.per_validation) / processes
