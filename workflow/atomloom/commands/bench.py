"""`atomloom bench`: the largest batch, and a comparison of precisions, on the user's own data."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from atomloom.config import dump_config
from atomloom.data.memory import free_memory
from atomloom.errors import AtomloomError
from atomloom.inference.devices import choose_device
from atomloom.pipeline.paths import RunPaths
from atomloom.stages.labelled import load_labelled
from atomloom.store.files import write_atomically, write_json, write_text
from atomloom.training.batch_size import Found, Trial, find_batch, make_trials
from atomloom.training.precision_report import Mode, compare_precisions
from atomloom.training.trainer import rows_with_targets

Log = Callable[[str], None]

WATCH_SECONDS = 0.005
"""Seconds between two checks of the memory of a trial process."""


def bench_folder(paths: RunPaths) -> Path:
    """Folder for the results of benchmarks of a run, whether it is trained or not."""
    return paths.layout.results / "bench" / paths.run_key


# --- batch ---


def bench_batch(paths: RunPaths, limit: int | None, log: Log) -> Found:
    """Find the largest batch, in separate processes; writes `batch.json`.

    Args:
        paths: paths of the run, with index and split done.
        limit: bytes; by default the free memory.
        log: takes one line at a time.

    Raises:
        AtomloomError: when not one structure fits, or a trial fails for another reason.
    """
    config = paths.config
    if config.training.processes > 1:
        raise AtomloomError(
            "is measured with one process, and a batch is shared by all",
            where="training.devices",
            todo="set 1 to measure, and multiply the bounds by the number of processes",
        )
    cuda = choose_device(config.training.device) == "cuda"
    if limit is None:
        limit = torch.cuda.mem_get_info()[0] if cuda else free_memory().size
    most = len(rows_with_targets(load_labelled(paths), "train", log))
    path = paths.layout.merged_config
    write_text(path, dump_config(config))

    def attempt(sizes: list[int]) -> Iterator[Trial]:
        for trial in _attempt(path, sizes, None if cuda else limit):
            log(f"{trial.structures:,} structures, {trial.edges:,} edges: {_size(trial.peak)}")
            yield trial

    found = find_batch(attempt, most, limit)
    if found.best is None:
        raise AtomloomError(
            f"not one structure can be trained on within {_size(limit)}",
            where=config.model.name,
            todo="give more --memory, set training.gradient_checkpointing, or take a smaller model",
        )
    best = found.best
    bounds = {"structures": best.structures, "edges": best.edges}
    write_json(
        bench_folder(paths) / "batch.json",
        {
            "batch": bounds,
            "peak": best.peak,
            "limit": limit,
            "device": "cuda" if cuda else "cpu",
            "precision": config.training.precision,
            "whole_training_set": found.whole,
            "trials": [trial.content() for trial in found.tried],
        },
    )
    log(
        f"training.batch: {{structures: {best.structures}, edges: {best.edges}}} takes at most "
        f"{_size(best.peak)} of {_size(limit)}"
        + (" (all structures at once)" if found.whole else "")
    )
    return found


def run_trials(paths: RunPaths, sizes: list[int]) -> None:
    """Run trials in a trial process: print one line of JSON for each size that fits."""
    for trial in make_trials(load_labelled(paths), paths.config, sizes):
        print(json.dumps(trial.content()), flush=True)


def _attempt(config: Path, sizes: list[int], limit: int | None) -> Iterator[Trial]:
    """Run trials in a separate process, which is killed when it exceeds the limit."""
    command = [sys.executable, "-P", "-m", "atomloom", "bench", "batch", "--config", str(config)]
    command += ["--trials", ",".join(map(str, sizes))]
    ended = threading.Event()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        watch = threading.Thread(target=_watch, args=(process, limit, ended), daemon=True)
        watch.start()
        try:
            for line in process.stdout or ():
                yield Trial(**json.loads(line))
            process.wait()
        finally:
            process.kill()
            watch.join()
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    if process.returncode not in (0, -9) and not ended.is_set():
        raise AtomloomError(f"a trial failed: {lines[-1] if lines else process.returncode}")


def _watch(process: subprocess.Popen[str], limit: int | None, ended: threading.Event) -> None:
    """Kill a process that takes more than the limit, before the system has to."""
    import psutil

    try:
        seen = psutil.Process(process.pid)
        while limit is not None and process.poll() is None:
            if seen.memory_info().rss > limit:
                ended.set()
                process.kill()
            time.sleep(WATCH_SECONDS)
    except psutil.Error:
        return  # it has ended


# --- precision ---


def bench_precision(paths: RunPaths, steps: int, log: Log) -> list[Mode]:
    """Write `precision.json`, `precision.csv` (losses by step) and `precision.png`.

    Raises:
        AtomloomError: when index or split are missing, or a target cannot be learnt.
    """
    modes = compare_precisions(load_labelled(paths), paths.config, steps, log)
    folder = bench_folder(paths)
    cuda = choose_device(paths.config.training.device) == "cuda"
    device = torch.cuda.get_device_name() if cuda else "cpu"
    write_json(
        folder / "precision.json",
        {"device": device, "steps": steps, "modes": [asdict(mode) for mode in modes]},
    )
    curves = pd.DataFrame({mode.precision: mode.losses for mode in modes if mode.losses})
    curves.insert(0, "step", range(1, len(curves) + 1))
    write_atomically(folder / "precision.csv", lambda path: curves.to_csv(path, index=False))
    write_atomically(folder / "precision.png", lambda path: _draw(curves, path))
    for line in precision_table(modes):
        log(line)
    log(f"written to {folder}")
    return modes


def precision_table(modes: list[Mode]) -> Iterator[str]:
    """Lines of the precision report."""
    yield (
        f"{'precision':<11}{'in use':<8}{'output error':>13}{'gradient error':>16}"
        f"{'last loss':>11}{'val MAE':>11}{'ms/step':>11}{'speed':>8}"
    )
    for mode in modes:
        head = f"{mode.precision:<11}{'yes' if mode.used else 'NO':<8}"
        if mode.losses:
            tail = mode.losses[-max(1, len(mode.losses) // 10) :]
            error = next(iter(mode.validation.values()), float("nan"))
            head += (
                f"{mode.output_error:>13.1e}{mode.gradient_error:>16.1e}"
                f"{sum(tail) / len(tail):>11.4g}{error:>11.4g}{mode.milliseconds:>11.3g}"
                f"{mode.speed:>8.2f}"
            )
        yield head + (f"  {mode.note}" if mode.note else "")


def _draw(curves: pd.DataFrame, path: Path) -> None:
    """Draw the loss by step, smoothed over a twentieth of the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in curves.columns[1:]:
        smooth = curves[name].rolling(max(1, len(curves) // 20), min_periods=1).mean()
        axes.plot(curves["step"], smooth, label=name, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=150)


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
