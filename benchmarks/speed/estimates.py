"""Estimates of `atomloom plan --cost` against what the jobs then take.

    python -m benchmarks.speed.estimates [--only demo|phonons|mp36k]

The demo crystals, the 1,265 of matbench_phonons and 36,476 of the Materials Project (one compressed archive of CIFs;
ATOMLOOM_DATA names the folder of the data sets), each with a small iComFormer for a few epochs. First the estimate, from a rehearsal on a sample; then all
stages, each chunk a process of its own with nothing else on the machine that is ours. Ratios are estimated over
observed: seconds and peak memory of the longest and the largest job of each stage. Writes
benchmarks/results/estimates.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

from atomloom.commands.cost import estimate_cost
from atomloom.commands.estimates import estimate_jobs
from atomloom.commands.rehearsal import rehearse
from atomloom.config import Config, dump_config, load_config, parse_config
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.stage_table import STAGES
from atomloom.pipeline.timing import read_timing
from atomloom.stages.plan import make_plan
from benchmarks.common.results import (
    ROOT,
    Parser,
    data_path,
    machine,
    read_result,
    rounded,
    write_result,
)

THREADS = 1
CHUNKS = 3
"""Number of chunks that are run as jobs; the largest is among them. The others are run together."""
MODEL = {"name": "icomformer", "width": 32, "layers": 2}
EPOCHS = {"demo": 5, "phonons": 3, "mp36k": 2}
FILES = {
    "demo": ROOT / "config" / "config.yaml",
    "phonons": ROOT / "config" / "presets" / "matbench-phonons.yaml",
    "mp36k": ROOT / "config" / "presets" / "mp36k-formation-energy.yaml",
}
DATA = {"phonons": ("matbench_phonons",), "mp36k": ("mp36k_crysxpp",)}


def main() -> None:
    """Measure, print, write."""
    options = Parser(__doc__, FILES).parse_args()
    content = read_result("estimates") if options.only else {}
    for name in [options.only] if options.only else FILES:
        for folder in DATA.get(name, ()):
            data_path(folder)
        content[name] = measure(name)
        for stage, row in content[name]["stages"].items():
            print(
                f"{name:<7}{stage:<10}{row['seconds']:>9.1f} s{row['seconds_ratio']:>7.2f}"
                f"{row['mib']:>9.0f} MiB{row['memory_ratio']:>7.2f}",
                flush=True,
            )
    if options.write:
        write_result("estimates", rounded(content | {"machine": machine("torch", threads=THREADS)}))


def measure(name: str) -> dict:
    """Estimate, then run, one data set."""
    with tempfile.TemporaryDirectory() as folder, chdir(ROOT):
        config = small(name, Path(folder))
        layout = Layout(config)
        plan = make_plan(layout, print)
        begun = time.perf_counter()
        cost = estimate_cost(layout, plan)
        rehearsal = rehearse(layout, plan, 0, print)
        paths = RunPaths(layout, plan)
        estimates = estimate_jobs(paths, cost, rehearsal)
        seconds = time.perf_counter() - begun
        seen = {stage: observe(paths, stage) for stage in STAGES if stage in estimates}
    stages = {
        stage: {
            "seconds": taken,
            "seconds_ratio": estimates[stage].seconds / taken,
            "mib": peak,
            "memory_ratio": estimates[stage].megabytes / peak,
        }
        for stage, (taken, peak) in seen.items()
    }
    return {
        "records": plan.records,
        "sample": rehearsal.records,
        "rehearsal_seconds": seconds,
        "epochs": EPOCHS[name],
        "load": os.getloadavg()[1],
        "stages": stages,
    }


def small(name: str, folder: Path) -> Config:
    """Config of a training that ends, with all files in a folder."""
    content = load_config(FILES[name]).model_dump(mode="json")
    content |= {"model": MODEL, "sweep": None, "published": None}
    content["paths"] = {"results": str(folder / "results"), "store": str(folder / "store")}
    training = {"epochs": EPOCHS[name], "threads": THREADS, "compile": False, "precision": "32"}
    content["training"] |= training | {"device": "cpu"}
    return parse_config(content)


def observe(paths: RunPaths, name: str) -> tuple[float, float]:
    """Run a stage; seconds and MiB of its longest and largest job, start of the process included."""
    stage = STAGES[name]
    assert stage.job is not None
    file = paths.layout.results / "small.yaml"
    file.write_text(dump_config(paths.config))
    keys = [""]
    if stage.per_chunk:
        order = sorted(paths.plan.chunks, key=lambda chunk: -chunk.count)
        keys = list(dict.fromkeys(chunk.key for chunk in order))[:CHUNKS]
    taken = []
    for key in keys:
        begun = time.perf_counter()
        command(name, file, *(("--chunk", key) if key else ()))
        seconds = time.perf_counter() - begun
        timing = read_timing(paths.layout.timing(name, stage.job(paths, key)))
        assert timing is not None
        taken.append((seconds, timing[1]))
    if stage.per_chunk:
        command(name, file, "--workers", "2")
    return max(seconds for seconds, _ in taken), max(peak for _, peak in taken)


def command(name: str, file: Path, *options: str) -> None:
    """Run a command of atomloom with a config."""
    call = [sys.executable, "-m", "atomloom", name, "--config", str(file), *options]
    subprocess.run(call, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
