"""Time, memory, files and bytes against the number of structures, and what they come to at 1, 10 and 100 million.

    python -m benchmarks.speed.growth [--only PART] [--folder SCRATCH]

stages: plan, convert, graphs, index and split of 10,000, 30,000 and 90,000 rattled perovskites of five atoms, and
loading them to train, in memory and from disk; processor time and peak memory of each process.
chunk: convert and graphs of one chunk of 1,000 and of 8,000.
results: bytes of the tables of predictions of 100,000 structures, made up.
files: looking whether one of a folder's files, one per structure, has changed.
trajectory: the split of a slow trajectory, all frames of which have one formula.
dag: dry runs of Snakemake over made-up plans, processor time and peak memory by the number of chunks.
epoch: the order of an epoch, time and memory per structure; and the sharing of one batch among ranks.
balance: structures of mp36k at random in batches, shared among ranks: the part of the time in which ranks work,
if it goes by edges.
extrapolated: straight lines through what was measured, at 1, 10 and 100 million. `docs/scale.md` shows these tables,
which every run writes there anew. Updates its parts of benchmarks/results/growth.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.config import GraphSpec, load_config
from atomloom.config.training import Batching
from atomloom.data.batching import Sizes, deal, plan_epoch
from atomloom.graphs.build import build_graphs
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Chunk, Plan
from atomloom.readers import enumerate_records, list_files, parse_record
from atomloom.stages.labelled import load_labelled
from atomloom.stages.sources import refresh_sources
from atomloom.store.parquet import write_table
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.common.extrapolation import extrapolate, with_tables
from benchmarks.common.results import (
    ROOT,
    Parser,
    data_path,
    machine,
    read_result,
    rounded,
    write_result,
)
from benchmarks.common.structures import extxyz_frame

PAGE = ROOT / "docs" / "scale.md"
PEROVSKITES = "perov5/perov5_heat_ref.all_structures.json.zip"
SIZES = 10_000, 30_000, 90_000
PREDICTED = 100_000
FILE_COUNTS = 500, 2_000
FRAMES = 2_000, 4_000, 8_000
CHUNKS = 100, 500, 2_000
ORDERED = 4_000_000
RANKS = 2, 8, 64, 512
PER_RANK = 1, 4, 16, 64
CHUNK_SIZES = 1_000, 8_000
SEED = 13
STAGES = "plan", "convert", "graphs", "index", "split"
UNIT = 1 if sys.platform == "darwin" else 1024
CONFIG = """
dataset:
  name: growth
  source: data
  target: energy
  chunks: {{mean: {mean}}}
model: {{name: icomformer, width: 8, layers: 2}}
training: {{epochs: 1, threads: 1, device: cpu, loader: {{mode: {mode}}}}}
"""


# --- data sets ------------------------------------------------------------------------------------


def perovskites() -> list[Structure]:
    """The perovskites of five atoms, once."""
    records = enumerate_records(list_files(data_path(PEROVSKITES)))
    read = [parse_record(one.format, one.payload or b"", one.id) for one in records]
    return [one for one in read if len(one) == 5]


def rattled(count: int, seed: int = SEED) -> Iterator[Structure]:
    """Copies of perovskites drawn at random, each with its own displacements."""
    rng = np.random.default_rng(seed)
    originals = perovskites()
    for place in rng.integers(len(originals), size=count):
        one = originals[place]
        moves = rng.normal(scale=0.02, size=one.positions.shape)
        yield replace(one, positions=one.positions + moves)


def write_project(scratch: Path, structures: Iterable[Structure], mean: int = 1_000) -> None:
    """Write structures with made-up energies into one file, and the config."""
    rng = np.random.default_rng(SEED)
    (scratch / "data").mkdir()
    with open(scratch / "data" / "frames.extxyz", "w") as file:
        file.writelines(extxyz_frame(one, energy=rng.normal()) for one in structures)
    set_config(scratch, mean)


def set_config(scratch: Path, mean: int = 1_000, mode: str = "memory") -> None:
    """Write the config."""
    (scratch / "growth.yaml").write_text(CONFIG.format(mean=mean, mode=mode))


# --- processes ------------------------------------------------------------------------------------


LAUNCHER = """
import json, os, sys
child = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""
"""A small process between: a process that is started by this one would have its peak memory as a minimum."""


def spent(folder: Path, *command: str) -> dict[str, float]:
    """Processor seconds and peak memory in MB of a Python process, its children's time included."""
    launcher = [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(
        launcher, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    *_, last = done.stdout.splitlines()
    failed, seconds, peak = json.loads(last)
    if failed:
        raise SystemExit(f"{command} failed:\n{done.stdout[-3000:]}")
    return {"seconds": seconds, "mb": peak * UNIT / 1e6}


def stage(folder: Path, name: str) -> dict[str, float]:
    """What a stage takes."""
    found = spent(folder, "-m", "atomloom", name, "--config", "growth.yaml")
    print(f"  {name:<10}{found['seconds']:>10.1f} s {found['mb']:>10,.0f} MB", flush=True)
    return found


def load_to_train() -> None:
    """Load the data set of the current folder as training does, and one epoch's order; run by `spent`."""
    layout = Layout(load_config("growth.yaml"))
    data = load_labelled(RunPaths(layout, Plan.read(layout.plan_folder / "plan.json")))
    data.digest()
    data.loader(data.split("train"), data.targets, Batching(structures=64), shuffle=True).plan(0)


def loading(folder: Path, mode: str) -> dict[str, float]:
    """What loading takes, with a placement."""
    set_config(folder, mode=mode)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks.speed.growth import load_to_train; load_to_train()"
    found = spent(folder, "-c", code)
    print(f"  load, {mode:<6}{found['seconds']:>8.1f} s {found['mb']:>10,.0f} MB", flush=True)
    return found


def held(folder: Path) -> tuple[int, int]:
    """Number of files and folders below a folder, and their bytes."""
    paths = list(folder.rglob("*"))
    return len(paths), sum(path.stat().st_size for path in paths if path.is_file())


def warm_up() -> None:
    """Run what is measured once, since the first process with a kernel compiles and stores it."""
    with tempfile.TemporaryDirectory() as name:
        write_project(Path(name), [*rattled(400), *walk(100)])
        for each in STAGES:
            spent(Path(name), "-m", "atomloom", each, "--config", "growth.yaml")
        loading(Path(name), "memory")


# --- parts ----------------------------------------------------------------------------------------


def stages() -> dict[str, Any]:
    """What each stage takes, by the number of structures."""
    rows = []
    for count in SIZES:
        print(f"{count:,} structures")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_project(folder, rattled(count))
            row: dict[str, Any] = {"structures": count}
            for each in STAGES:
                row[each] = stage(folder, each)
            row["load_memory"], row["load_disk"] = (
                loading(folder, mode) for mode in ("memory", "disk")
            )
            layout = Layout(load_config(folder / "growth.yaml"))
            row["chunks"] = len(Plan.read(folder / layout.plan_folder / "plan.json").chunks)
            row["raw_bytes"] = held(folder / "data")[1]
            row["structure_bytes"] = held(folder / "store" / "structures")[1]
            row["graph_bytes"] = held(folder / "store" / "graphs")[1]
            row["result_files"], row["result_bytes"] = held(folder / "results")
            row["store_files"] = held(folder / "store")[0]
        rows.append(row)
    return {"rows": rows}


def chunk() -> dict[str, Any]:
    """Memory of jobs, by the number of structures in their chunk."""
    rows = []
    for count in CHUNK_SIZES:
        print(f"{count:,} structures in one chunk")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_project(folder, rattled(count), mean=4 * count)  # of which the min is a quarter
            rows.append(
                {"structures": count}
                | {each: stage(folder, each) for each in ("plan", "convert", "graphs")}
            )
    return {"rows": rows}


def results() -> dict[str, Any]:
    """Bytes of tables of predictions, made up, in the form in which `evaluate` writes them."""
    rng, count = np.random.default_rng(SEED), PREDICTED
    truth = rng.normal(size=count)
    table = pd.DataFrame(
        {
            "id": [f"frames.extxyz#{row}" for row in range(count)],
            "split": rng.choice(["train", "val", "test"], count, p=[0.8, 0.1, 0.1]),
            "formula": rng.choice([f"ABO3-{n}" for n in range(5_000)], count),
            "elements": rng.choice([f"A{n},B,O" for n in range(5_000)], count),
            "n_atoms": np.full(count, 5, dtype=np.int32),
            "energy": truth,
            "energy_predicted": (truth + rng.normal(scale=0.01, size=count)).astype(np.float32),
        }
    )
    with tempfile.TemporaryDirectory() as name:
        paths = Path(name, "predictions.csv"), Path(name, "predictions.parquet")
        table.to_csv(paths[0], index=False)
        write_table(paths[1], table)
        sizes = {path.name: path.stat().st_size for path in paths}
    return {"rows": [{"structures": count, "bytes": sizes}]}


def files() -> dict[str, Any]:
    """Looking at the files of a folder, whether one has changed, as each start of the workflow does."""
    rows = []
    for count in FILE_COUNTS:
        with tempfile.TemporaryDirectory() as name, chdir(name):
            Path("data").mkdir()
            for number, one in enumerate(walk(count)):
                Path("data", f"{number}.extxyz").write_text(extxyz_frame(one))
            set_config(Path(name))
            layout = Layout(load_config("growth.yaml"))
            refresh_sources(layout)  # reads them all
            times = [_processor(lambda own=layout: refresh_sources(own)) for _ in range(3)]
        rows.append({"files": count, "look_seconds": min(times)})
        print(f"  looking at {count:,} files {rows[-1]['look_seconds']:>8.2f} s", flush=True)
    return {"rows": rows}


def walk(count: int) -> Iterator[Structure]:
    """Frames of a slow trajectory, a random walk of eight atoms in a box."""
    rng = np.random.default_rng(SEED)
    positions = np.array([[x, y, z] for x in (0, 3.0) for y in (0, 3.0) for z in (0, 3.0)])
    for _ in range(count):
        positions = positions + rng.normal(scale=0.003, size=positions.shape)
        yield Structure([11, 17] * 4, positions, np.eye(3) * 6.0, [True] * 3)


def trajectory() -> dict[str, Any]:
    """The split of a trajectory, by its length."""
    rows = []
    for count in FRAMES:
        print(f"{count:,} frames of a trajectory")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_project(folder, walk(count))
            for each in ("plan", "convert"):
                stage(folder, each)
            rows.append({"frames": count, "split": stage(folder, "split")})
    return {"rows": rows}


def dag() -> dict[str, Any]:
    """Dry runs over made-up plans, with nothing built."""
    rows = []
    for count in CHUNKS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "data").mkdir()
            (folder / "data" / "frames.xyz").write_text("1\nenergy=1\nCu 0 0 0\n")
            set_config(folder)
            stage(folder, "plan")
            layout = Layout(load_config(folder / "growth.yaml"))
            chunks = tuple(Chunk(f"{n:016x}", n * 1_000, 1_000) for n in range(count))
            plan = Plan(chunks, count * 1_000, "0" * 16, "0" * 16, "", 0)
            plan.write(folder / layout.plan_folder / "plan.json")
            fixed = ["-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
            fixed += ["--workflow-profile", str(ROOT / "profiles" / "default"), "--configfile"]
            fixed += ["growth.yaml", "-n", "--quiet", "all", "--", "prepare"]
            rows.append({"chunks": count, **spent(folder, *fixed)})
        print(f"  {count:,} chunks {rows[-1]['seconds']:>8.1f} s {rows[-1]['mb']:>8,.0f} MB")
    return {"rows": rows}


def epoch() -> dict[str, Any]:
    """The order of an epoch, and the sharing of a batch."""
    rng = np.random.default_rng(SEED)
    edges = rng.integers(20, 400, size=ORDERED)
    sizes, rows = Sizes(edges // 10, edges, np.zeros_like(edges)), np.arange(ORDERED)
    bounds = Batching(structures=64)
    plan_epoch(rows[:100], sizes, bounds, shuffle=True)
    seconds = _processor(lambda: plan_epoch(rows, sizes, bounds, shuffle=True, seed=1))
    tracemalloc.start()
    plan = plan_epoch(rows, sizes, bounds, shuffle=True, seed=1)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan.rows) == ORDERED
    shares = []
    for ranks in RANKS:
        for each in (16, 64):
            weights = edges[: each * ranks]
            deal(weights, ranks)
            times = [_processor(lambda w=weights, r=ranks: deal(w, r)) for _ in range(5)]
            shares.append({"ranks": ranks, "structures_per_rank": each, "ms": 1e3 * min(times)})
            print(f"  a batch of {each} on each of {ranks} ranks {shares[-1]['ms']:>8.2f} ms")
    return {
        "structures": ORDERED,
        "seconds": seconds,
        "peak_bytes_per_structure": peak / ORDERED,
        "kept_bytes_per_structure": kept / ORDERED,
        "shares": shares,
    }


def balance() -> dict[str, Any]:
    """Part of the time in which ranks work, by ranks and structures for each; dealt by edges, and in turn."""
    records = enumerate_records(list_files(data_path("mp36k_crysxpp/cif.tar.xz")))
    spec, edges, atoms = GraphSpec(), [], []
    block: list[Structure] = []

    def count(block: list[Structure]) -> None:
        graphs = build_graphs(StructureTable.from_structures(block), spec)
        edges.append(np.diff(graphs.edge_ptr))
        atoms.append(np.diff(graphs.node_ptr))

    for record in records:
        block.append(parse_record(record.format, record.payload or b"", record.id))
        if len(block) == 2_000:
            count(block)
            block = []
    count(block)
    whole = np.concatenate(edges).astype(np.int64)
    rng = np.random.default_rng(SEED)
    rows = []
    for ranks in RANKS:
        for each in PER_RANK:
            batches = max(3, min(200, 40_000 // (ranks * each)))
            work = np.zeros(3)  # dealt, in turn, ideal
            for _ in range(batches):
                batch = rng.choice(whole, ranks * each)
                work += [
                    np.bincount(deal(batch, ranks), batch, ranks).max(),
                    batch.reshape(each, ranks).sum(axis=0).max(),
                    batch.sum() / ranks,
                ]
            rows.append(
                {
                    "ranks": ranks,
                    "structures_per_rank": each,
                    "dealt": work[2] / work[0],
                    "in_turn": work[2] / work[1],
                }
            )
            print(
                f"  {ranks:>4} ranks x {each:>3}: {rows[-1]['dealt']:.3f}, {rows[-1]['in_turn']:.3f}"
            )
    return {
        "structures": len(whole),
        "atoms_mean": float(np.concatenate(atoms).mean()),
        "edges": dict(zip(("mean", "median", "p99", "max"), _spread(whole), strict=True)),
        "rows": rows,
    }


def _spread(values: np.ndarray) -> list[float]:
    return [float(x) for x in (values.mean(), *np.percentile(values, (50, 99)), values.max())]


def _processor(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


PARTS: dict[str, Callable[[], Any]] = {
    "stages": stages,
    "chunk": chunk,
    "results": results,
    "files": files,
    "trajectory": trajectory,
    "dag": dag,
    "epoch": epoch,
    "balance": balance,
}


def main() -> None:
    """Measure, extrapolate, write the result and the tables of the page."""
    parser = Parser(__doc__, parts=list(PARTS))
    parser.add_argument("--folder", type=Path, help="where the scratch folders go; the system's")
    options = parser.parse_args()
    if options.folder:
        tempfile.tempdir = str(options.folder)
    warm_up()
    for name in [options.only] if options.only else PARTS:
        found = rounded(PARTS[name]()) | {"machine": machine("numpy", "pandas", "snakemake")}
        content = read_result("growth") | {name: found}
        if set(PARTS) <= set(content):
            content["extrapolated"] = rounded(extrapolate(content))
        if options.write:
            write_result("growth", content)
    if options.write and "extrapolated" in content:
        PAGE.write_text(with_tables(PAGE.read_text(), content))


if __name__ == "__main__":
    main()
