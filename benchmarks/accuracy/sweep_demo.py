"""Cost and best error of a sweep with successive halving, beside the same trials all trained to the end.

    python -m benchmarks.accuracy.sweep_demo [--jobs N] [--folder F] [--small]

Runs the trials of config/presets/demo-sweep.yaml twice, from graphs that are there, each time with all runs
of its own: first all to the end, then halved. Then the best trial of the halved sweep is trained once more on
training and validation rows. What halving by other numbers would have cost and found is read off the curves
of the trials that were trained to the end, since a trial that was stopped and resumed has the same bits. A call that was stopped does what is missing, but then knows no times: remove
the folder to measure. Writes benchmarks/results/sweep_demo.json, the table and figures of the halved sweep
beside it, and the section on this example in docs/sweeps.md.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from atomloom.api import prepare
from atomloom.commands.trials import suggest_round
from atomloom.config import load_config
from atomloom.config.sweep import Halving
from atomloom.pipeline.paths import RunPaths
from atomloom.sweeps.rounds import before, read_round, rungs, width
from atomloom.sweeps.runs import paths_of
from benchmarks.common.results import RESULTS, ROOT, Parser, machine, rounded, write_result

PRESET = "config/presets/demo-sweep.yaml"
SMALL = {
    "training": {"epochs": 3},
    "sweep": {
        "parameters": {
            "graph.max_neighbors": [8],
            "model.width": [16, 32],
            "training.learning_rate": [0.001, 0.01],
        },
        "halving": {"min_epochs": 1},
    },
}
"""For `--small`: four trials of three epochs."""
PAGE = ROOT / "docs" / "sweeps.md"
HALVINGS = ((3, 3), (3, 2), (5, 3), (5, 2), (6, 2), (9, 3), (10, 2))
"""Min epochs and factor of halvings that are read off."""
FIGURES = ("learning-curves", "parallel-coordinates")
"""Figures in the page."""
SHOWN = 8
"""Rows of the table in the page."""


def main() -> None:
    """Run both sweeps and the refit, and write the result file, the figures and the page."""
    parser = Parser(__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time (2)")
    parser.add_argument("--folder", type=Path, help="where runs go (a temporary folder)")
    parser.add_argument("--small", action="store_true", help="four short trials; writes nothing")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sweep-demo-"))
    changes = SMALL if options.small else {}
    whole = Sweep(folder, "whole", changes, {"halving": None, "refit": None})
    halved = Sweep(folder, "halved", changes, {"refit": None})
    for sweep in (whole, halved):
        sweep.prepare()
    spent = {sweep.name: sweep.run(options.jobs) for sweep in (whole, halved)}
    refitted = Sweep(folder, "halved", changes, {})
    refitted.run(options.jobs)
    result = compared(whole, halved, refitted, spent) | {"preset": PRESET, "jobs": options.jobs}
    result["read_off"] = read_off(whole)
    result |= machine("torch", "optuna")
    print(json.dumps(rounded(result), indent=1))
    if options.write and not options.small:
        write_result("sweep_demo", rounded(result))
        for figure in refitted.folder.glob("*.svg"):
            shutil.copy(figure, RESULTS / f"sweep_demo_{figure.name}")
        shutil.copy(refitted.folder / "sweep.csv", RESULTS / "sweep_demo.csv")
        PAGE.write_text(with_example(PAGE.read_text(), refitted, result))


class Sweep:
    """A sweep of the preset, with some changes, in a folder.

    Args:
        base: folder of everything.
        name: of the folder of results, which no other sweep's runs may be in.
        changes: to the preset.
        sweep: changes to its section `sweep`.
    """

    def __init__(
        self, base: Path, name: str, changes: Mapping[str, Any], sweep: Mapping[str, Any]
    ) -> None:
        file = base / f"{name}{'' if 'refit' in sweep else '-refit'}.yaml"
        self.name, self.files = name, [ROOT / PRESET, file]
        own = {"sweep": dict(sweep), "paths": _paths(base, name)}
        self.files[1].parent.mkdir(parents=True, exist_ok=True)
        self.files[1].write_text(yaml.safe_dump(_merged(changes, own)))

    def prepare(self) -> None:
        """Make graphs and splits of all trials."""
        self.paths = prepare(load_config(*self.files), print)
        trials = read_round(suggest_round(self.paths, 0, print))
        for trial in trials:
            for repeat in trial.repeats:
                prepare(paths_of(self.paths, trial, repeat).config, lambda line: None)

    def run(self, jobs: int) -> dict[str, float]:
        """Train and compare the trials; seconds of the clock, and of the processor in all processes."""
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "atomloom", "sweep", "--jobs", str(jobs), "--config"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *map(str, self.files)], cwd=ROOT, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "clock_seconds": time.perf_counter() - started,
            "processor_seconds": after.ru_utime
            + after.ru_stime
            - before.ru_utime
            - before.ru_stime,
        }

    @property
    def folder(self) -> Path:
        """Folder of its tables and figures."""
        return self._paths().sweep

    def _paths(self) -> RunPaths:
        return prepare(load_config(*self.files), lambda line: None)

    def curves(self) -> dict[int, list[float]]:
        """Validation error at the best epoch so far, after each epoch, of each trial."""
        table = pd.read_csv(self.folder / "sweep.csv", dtype={"run": str})
        runs = self._paths().layout.results / "runs"
        found = {}
        for trial, run in zip(table["trial"], table["run"], strict=True):
            history = pd.read_csv(runs / run / "history.csv")
            (errors,) = (history[name] for name in history if name.startswith("val_mae"))
            found[int(trial)] = errors.cummin().tolist()
        return found

    @property
    def said(self) -> dict[str, Any]:
        """Summary that it wrote."""
        return json.loads((self.folder / "sweep.json").read_text())


def _paths(base: Path, name: str) -> dict[str, str]:
    return {"store": str((base / "store").resolve()), "results": str((base / name).resolve())}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def compared(
    whole: Sweep, halved: Sweep, refitted: Sweep, spent: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Result of both sweeps and what one cost beside the other."""
    found: dict[str, Any] = {}
    for sweep in (whole, halved):
        said = sweep.said
        found[sweep.name] = {
            "trials": said["trials"],
            "epochs": said["epochs"],
            **spent[sweep.name],
            "best_trial": said["best"]["trial"],
            "best_val_mae": said["best"]["value"],
            "best_point": said["best"]["point"],
        }
    a, b = found["whole"], found["halved"]
    (refit,) = refitted.said["refit"]
    return found | {
        "cheaper_in_epochs": a["epochs"] / b["epochs"],
        "cheaper_in_processor_seconds": a["processor_seconds"] / b["processor_seconds"],
        "best_error_halved_over_whole": b["best_val_mae"] / a["best_val_mae"],
        "same_best_trial": a["best_trial"] == b["best_trial"],
        "refit": {name: refit[name] for name in ("epochs", "errors", "reason")},
    }


def read_off(whole: Sweep) -> list[dict[str, float]]:
    """Epochs and best error of each halving of `HALVINGS`, by the curves of all trials."""
    config, curves = load_config(*whole.files), whole.curves()
    assert config.sweep is not None
    found = []
    for least, factor in HALVINGS:
        halving = Halving(min_epochs=least, factor=factor)
        sweep = config.sweep.model_copy(update={"halving": halving})
        steps, alive, epochs = rungs(sweep, config.training.epochs), sorted(curves), 0
        for rung, (start, end) in enumerate(pairwise((0, *steps))):
            if rung:
                groups = [
                    before(sweep, len(curves), rung, k)
                    for k in range(width(sweep, len(curves), rung))
                ]
                alive = [
                    min((alive[k] for k in group), key=lambda t: curves[t][start - 1])
                    for group in groups
                ]
            epochs += len(alive) * (end - start)
        best, least_of_all = (min(curves[t][-1] for t in some) for some in (alive, curves))
        found.append(
            {
                "min_epochs": least,
                "factor": factor,
                "epochs": epochs,
                "cheaper_in_epochs": len(curves) * config.training.epochs / epochs,
                "best_error_over_whole": best / least_of_all,
            }
        )
    return found


BEGIN, END = "<!-- written by benchmarks.accuracy.sweep_demo -->\n", "<!-- until here -->\n"


def with_example(page: str, sweep: Sweep, result: Mapping[str, Any]) -> str:
    """The page, with the section on this example written anew."""
    table = pd.read_csv(sweep.folder / "sweep.csv").sort_values(["value", "trial"]).head(SHOWN)
    keys = [name for name in table.columns if "." in name]
    columns = ["trial", *keys, "value", "status", "epochs"]
    rows = [[_cell(value) for value in row] for row in table[columns].to_numpy(object)]
    names = ["trial", *keys, "`val_mae` (eV/atom)", "status", "epochs"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    halved, whole = result["halved"], result["whole"]
    errors = result["refit"]["errors"].values()
    error = next(sets["test"]["mae"] for sets in errors)
    told = (
        f"It took {halved['clock_seconds'] / 60:.1f} minutes on {result['jobs']} cores and trained "
        f"{halved['epochs']:,} epochs, where training all to the end took "
        f"{whole['clock_seconds'] / 60:.1f} minutes and {whole['epochs']:,} epochs. The best trial has a "
        f"validation error of {halved['best_val_mae']:.4f} eV/atom, and of all trained to the end the best "
        f"has {whole['best_val_mae']:.4f}. Trained once more on training and validation rows, its error on "
        f"the test set is {error:.4f} eV/atom."
    )
    others = "\n".join(
        f"| {other['min_epochs']} | {other['factor']} | {other['cheaper_in_epochs']:.1f} | "
        f"{other['best_error_over_whole']:.2f} |"
        for other in result["read_off"]
    )
    costs = (
        "A trial that would end best may lag behind early, more so with few validation structures (42 here). What "
        "other halvings of the same trials cost and find:\n\n"
        "| `min_epochs` | `factor` | times fewer epochs | best validation error over that of all trials |\n"
        f"|---|---|---|---|\n{others}\n"
    )
    figures = "\n".join(
        f"![{name}](../benchmarks/results/sweep_demo_{name}.svg)" for name in FIGURES
    )
    middle = f"{told}\n\n" + "\n".join(lines) + f"\n\n{costs}\n{figures}\n"
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}",
        lambda _: f"{BEGIN}{middle}{END}",
        page,
        flags=re.S,
    )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
