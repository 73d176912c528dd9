"""Cost of 200,000 structures, of one change among them, and where ten million would bend.

    python -m benchmarks.speed.scale [--only large | reading | plan | dag] [--peer PYTHON] [--folder SCRATCH]

large: 200,000 crystals, made of mp36k and perov5 by seeded rattling, in 20 extxyz files; plan, convert,
graphs, index and split by the command line with two workers; then the dry run of the finished
workflow, and what one structure appended, inserted or deleted makes it do again.
reading: the graphs of the same 200,000 crystals from disk into memory on one core, alongside lists of
PyTorch Geometric's Data in a pickle, written and read by the interpreter `--peer` (which has torch and
torch_geometric), in turns. And the disk that a perovskite of five atoms takes.
plan: the plan of ten million one-atom frames, made for real.
dag: dry runs of the workflow over a made-up plan of ten million records and stand-ins of their shards,
for several chunk sizes (CPU seconds: they use one core). Updates its part of benchmarks/results/scale.json.
"""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from atomloom.config import GraphSpec, load_config
from atomloom.graphs.build import build_graphs
from atomloom.graphs.store import GraphStore, write_graphs
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Chunk, Plan
from atomloom.readers import enumerate_records, list_files, parse_record
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.common.peer import PEERS
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
from benchmarks.common.timing import Seconds, clock, in_turns

STRUCTURES = 200_000
PEROVSKITES = "perov5_heat_ref.all_structures.json.zip"
FILES = 20
RATTLE = 0.02  # A
SEED = 200
HUGE = 10_000_000
DRY_RUNS = 3
READ_ROUNDS = 3
CONFIG = """
dataset:
  name: scale
  source: data
  target: energy
  chunks: {{mean: {mean}}}
model: {{name: icomformer, width: 32}}
"""


# --- structures -----------------------------------------------------------------------------------


def crystals() -> Iterator[Structure]:
    """All crystals of mp36k and perov5, once."""
    sources = [data_path("mp36k_crysxpp/cif.tar.xz"), data_path(f"perov5/{PEROVSKITES}")]
    for source in sources:
        for record in enumerate_records(list_files(source)):
            yield parse_record(record.format, record.payload or b"", record.id)


def write_frames(folder: Path) -> dict:
    """200,000 rattled copies as extxyz, mixed, `FILES` files; returns what they are."""
    rng = np.random.default_rng(SEED)
    originals = list(crystals())
    chosen = rng.integers(len(originals), size=STRUCTURES)
    folder.mkdir()
    atoms = 0
    for number, part in enumerate(np.array_split(chosen, FILES)):
        with open(folder / f"part-{number:02d}.extxyz", "w") as file:
            for place in part:
                structure = originals[place]
                atoms += len(structure)
                file.write(frame(structure, rng))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "structures": STRUCTURES,
        "originals": len(originals),
        "atoms": atoms,
        "atoms_mean": atoms / STRUCTURES,
        "raw_bytes": size,
    }


def frame(structure: Structure, rng: np.random.Generator) -> str:
    """One rattled copy with a made-up energy."""
    moves = rng.normal(scale=RATTLE, size=structure.positions.shape)
    rattled = replace(structure, positions=structure.positions + moves)
    return extxyz_frame(rattled, energy=rng.normal())


# --- 200,000 --------------------------------------------------------------------------------------


def large(scratch: Path, _: str | None) -> dict:
    """Seconds of each stage, of the finished workflow's dry run, and jobs after each change."""
    raw = write_frames(scratch / "data")
    (scratch / "scale.yaml").write_text(CONFIG.format(mean=1000))
    stages = {}
    for stage in ("plan", "convert", "graphs", "index", "split"):
        workers = ["--workers", "2"] if stage in ("convert", "graphs") else []
        stages[stage] = _atomloom(scratch, stage, *workers)
        _row(f"{stage}, 200,000 structures", stages[stage], "s")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    index = json.loads(next(scratch.glob("results/*/index/*/index.json")).read_text())
    _snakemake(scratch, "-n", "prepare")  # the first one writes the merged config
    quiet = ("-n", "--quiet", "all", "--", "prepare")
    times = [_snakemake(scratch, *quiet)[0] for _ in range(DRY_RUNS)]
    assert not _jobs(_snakemake(scratch, "-n", "prepare")[1]), "the finished workflow has jobs left"
    _row("dry run when finished", statistics.median(times), "s")
    changes = {}
    for name, change in CHANGES.items():
        change(scratch / "data")
        changes[name] = _after(scratch)
        jobs = ", ".join(f"{count} {rule}" for rule, count in changes[name]["jobs"].items())
        _row(f"{name} one structure: plan", changes[name]["plan_seconds"], f"s, then {jobs}")
    return {
        **raw,
        "chunks": len(index["shards"]),
        "stage_seconds": stages,
        "largest_process_mib": memory,
        "edges": index["edges"],
        "graph_bytes": index["bytes"],
        "graph_bytes_a_structure": index["bytes"] / index["structures"],
        "structures_in_index": index["structures"],
        "dry_run_seconds": statistics.median(times),
        "after_one_change": changes,
        "workers": 2,
    }


def _append(data: Path) -> None:
    with open(sorted(data.iterdir())[-1], "a") as file:
        file.write(_new_frame(1))


def _insert(data: Path) -> None:
    _edit(sorted(data.iterdir())[FILES // 2], lambda frames: frames.insert(5000, _new_frame(2)))


def _delete(data: Path) -> None:
    _edit(sorted(data.iterdir())[FILES // 3], lambda frames: frames.pop(5000))


CHANGES: dict[str, Callable[[Path], None]] = {
    "append": _append,
    "insert": _insert,
    "delete": _delete,
}


def _new_frame(number: int) -> str:
    rng = np.random.default_rng(number)
    return frame(
        Structure([11, 17], [[0, 0, 0], [2.8, 2.8, 2.8]], np.eye(3) * 5.6, [True] * 3), rng
    )


def _edit(path: Path, change: Callable[[list[str]], object]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    frames, at = [], 0
    while at < len(lines):
        end = at + 2 + int(lines[at])
        frames.append("".join(lines[at:end]))
        at = end
    change(frames)
    path.write_text("".join(frames))


def _after(scratch: Path) -> dict:
    """Jobs that the workflow does again; then done, by the command line, for the next change."""
    counted = _jobs(_snakemake(scratch, "-n", "prepare")[1])
    assert counted.get("plan") == 1, counted
    seconds = _snakemake(scratch, "--until", "plan", "--", "prepare")[0]
    dry, output = _snakemake(scratch, "-n", "prepare")
    jobs = _jobs(output)
    for stage in ("convert", "graphs", "index", "split"):
        _atomloom(scratch, stage)
    assert not _jobs(_snakemake(scratch, "-n", "prepare")[1])
    return {"plan_seconds": seconds, "dry_run_seconds": dry, "jobs": jobs}


# --- reading --------------------------------------------------------------------------------------


def reading(scratch: Path, peer: str | None) -> dict:
    """Seconds to have all graphs in memory, and bytes on disk, alongside a pickle."""
    write_frames(scratch / "data")
    (scratch / "scale.yaml").write_text(CONFIG.format(mean=1000))
    for stage in ("plan", "convert", "graphs", "index"):
        _atomloom(scratch, stage)
    index = next(scratch.glob("results/*/index/*/index.json")).parent
    small = _perovskites(scratch)

    def load() -> None:
        assert len(GraphStore(index).load(threads=1)) == STRUCTURES

    def cut() -> None:
        table = GraphStore(index).load(threads=1)
        assert sum(len(table[i].numbers) > 0 for i in range(len(table))) == STRUCTURES

    pickled = scratch / "graphs.pickle"

    def unpickle() -> Seconds:
        count, *spent = _pickle(peer, "read", pickled)
        assert count == STRUCTURES
        return Seconds(*spent)

    if peer is not None:
        table = GraphStore(index).load()
        names = ("node_ptr", "edge_ptr", "numbers", "positions", "cell", "src", "dst", "shift")
        np.savez(scratch / "arrays.npz", **{name: getattr(table, name) for name in names})
        del table
        _pickle(peer, "write", scratch / "arrays.npz", pickled)
    variants = {"load": load, "load_and_cut": cut}
    if peer is not None:
        variants["pickle"] = unpickle
    times = in_turns(variants, READ_ROUNDS, warm_up=0)
    medians = {name: clock(each) for name, each in times.items()}
    size = json.loads((index / "index.json").read_text())["bytes"]
    _row("200,000 graphs into memory, digests recomputed", medians["load"], "s")
    _row("    and as 200,000 objects", medians["load_and_cut"], "s")
    result = {
        "graphs": STRUCTURES,
        "seconds": medians,
        "bytes_a_graph": size / STRUCTURES,
        "bytes_a_perovskite_of_5_atoms": small,
    }
    if peer is not None:
        _row("    a pickle of PyTorch Geometric's Data", medians["pickle"], "s")
        result["pickle_bytes_a_graph"] = pickled.stat().st_size / STRUCTURES
        result["times_pickle"] = medians["pickle"] / medians["load"]
        _row("    bytes of a graph there", result["pickle_bytes_a_graph"], "")
    _row("    bytes of a graph", result["bytes_a_graph"], "")
    _row("    bytes of a perovskite's graph", small, "")
    return result


def _perovskites(scratch: Path) -> float:
    """Bytes of shard a perovskite, rattled like the others."""
    rng = np.random.default_rng(SEED)
    folder = scratch / "perovskites"
    folder.mkdir()
    records = enumerate_records(list_files(data_path(f"perov5/{PEROVSKITES}")))
    read = [parse_record(r.format, r.payload or b"", r.id) for r in records]
    table = StructureTable.from_structures(
        [
            replace(s, positions=s.positions + rng.normal(scale=RATTLE, size=s.positions.shape))
            for s in read
            if len(s) == 5
        ]
    )
    sizes = 0
    for number, first in enumerate(range(0, len(table), 1000)):
        rows = np.arange(first, min(first + 1000, len(table)))
        path = folder / f"{number}.zarr.zip"
        write_graphs(path, build_graphs(table.take(rows), GraphSpec()), GraphSpec())
        sizes += path.stat().st_size
    return sizes / len(table)


def _pickle(python: str | None, *arguments: object) -> list:
    """Answer of a fresh process, whose memory holds nothing of the last one's."""
    command = [str(python), str(PEERS / "pyg_pickle.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _reading_line(result: dict) -> str:
    line = (
        f"{result['graphs']:,} graphs are in memory after {result['seconds']['load']:.1f} s on one core "
        f"({result['bytes_a_graph']:,.0f} bytes each, {result['bytes_a_perovskite_of_5_atoms']:,.0f} of "
        "five atoms)"
    )
    if "pickle" in result["seconds"]:
        line += (
            f", a pickle of Data lists after {result['seconds']['pickle']:.1f} s "
            f"({result['pickle_bytes_a_graph']:,.0f} bytes)"
        )
    return line


# --- ten million ----------------------------------------------------------------------------------


def huge_plan(scratch: Path, _: str | None) -> dict:
    """Seconds, memory and bytes of the plan of ten million records."""
    (scratch / "data").mkdir()
    with open(scratch / "data" / "frames.xyz", "w") as file:
        for number in range(HUGE):
            file.write(f"1\nenergy={number}\nCu 0.0 0.0 {number}e-6\n")
    (scratch / "scale.yaml").write_text(CONFIG.format(mean=1000))
    plan_seconds = _atomloom(scratch, "plan")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    _row(f"plan of {HUGE:,} records", plan_seconds, "s")
    _row("    memory", memory, "MiB")
    folder = next(scratch.glob("results/*/plan/*"))
    return {
        "records": HUGE,
        "seconds": plan_seconds,
        "mib": memory,
        "bytes": {path.name: path.stat().st_size for path in folder.glob("[a-z]*")},
        "chunks": len(Plan.read(folder / "plan.json").chunks),
    }


def dag(scratch: Path, _: str | None) -> dict:
    """Dry runs by chunk size."""
    return {"records": HUGE, "dry_runs": [_dag(mean) for mean in (100_000, 20_000, 5000, 1000)]}


def _dag(mean: int) -> dict:
    """Dry runs over a plan of `HUGE / mean` chunks, with nothing built and with everything."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "data").mkdir()
        (scratch / "data" / "frames.xyz").write_text("1\nenergy=1\nCu 0 0 0\n")
        (scratch / "scale.yaml").write_text(CONFIG.format(mean=mean))
        _atomloom(scratch, "plan")
        layout = Layout(load_config(scratch / "scale.yaml"))
        place = scratch / layout.plan_folder
        count = HUGE // mean
        chunks = tuple(Chunk(f"{n:016x}", n * mean, mean) for n in range(count))
        plan = Plan(chunks, HUGE, "0" * 16, "0" * 16, "", 0)
        plan.write(place / "plan.json")
        nothing = _cpu(lambda: _snakemake(scratch, "-n", "--quiet", "all", "--", "prepare"))
        places = RunPaths(layout, plan)
        stand_ins = [
            of(key) for of in (layout.structures, layout.graphs) for key in plan.chunk_keys
        ]
        stand_ins += [
            places.index / name for name in ("index.json", "index.parquet", "quarantine.csv")
        ]
        stand_ins += [
            places.split / name for name in ("dataset.parquet", "split.json", "quarantine.csv")
        ]
        for path in stand_ins:
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).touch()
        finished = _cpu(lambda: _snakemake(scratch, "-n", "--quiet", "all", "--", "prepare"))
        assert not _jobs(_snakemake(scratch, "-n", "prepare")[1]), "the stand-ins are not enough"
    _row(f"{count:,} chunks of {mean:,}: dry run, nothing built", nothing, "s")
    _row("    dry run, everything built", finished, "s")
    return {
        "mean": mean,
        "chunks": count,
        "unbuilt_cpu_seconds": nothing,
        "finished_cpu_seconds": finished,
    }


def _cpu(work: Callable[[], object]) -> float:
    """CPU seconds of the processes that `work` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# --- running --------------------------------------------------------------------------------------


def _atomloom(folder: Path, *arguments: str) -> float:
    return _run(folder, "atomloom", *arguments, "--config", "scale.yaml")[0]


def _snakemake(folder: Path, *arguments: str) -> tuple[float, str]:
    fixed = ["--snakefile", str(ROOT / "Snakefile"), "--workflow-profile"]
    fixed += [str(ROOT / "profiles" / "default"), "--configfile", "scale.yaml", "--cores", "2"]
    return _run(folder, "snakemake", *fixed, *arguments)


def _run(folder: Path, module: str, *arguments: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(
            f"{module} {arguments} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return seconds, done.stdout + done.stderr


def _jobs(output: str) -> dict[str, int]:
    """Jobs of a dry run by rule."""
    if "Nothing to be done" in output:
        return {}
    table = re.search(r"^job\s+count\n-+\s+-+\n(.*?)^total", output, re.M | re.S)
    assert table, output[-3000:]
    rows = dict(re.findall(r"^(\w+)\s+(\d+)", table.group(1), re.M))
    return {rule: int(count) for rule, count in rows.items() if rule not in ("all", "prepare")}


def _row(what: str, value: float, unit: str) -> None:
    print(f"{what:<62}{value:>12,.2f} {unit}", flush=True)


def _large_line(result: dict) -> str:
    most = max(c["jobs"].get("convert", 0) for c in result["after_one_change"].values())
    return (
        f"{result['structures']:,} structures: dry run of the finished workflow "
        f"{result['dry_run_seconds']:.1f} s; one structure more or less converts at most {most} chunks"
    )


def _plan_line(result: dict) -> str:
    return f"plan of {result['records']:,} records: {result['seconds']:.0f} s, {result['mib']:,.0f} MiB"


def _dag_line(result: dict) -> str:
    runs = ", ".join(
        f"{r['chunks']:,} chunks {r['finished_cpu_seconds']:.1f} s" for r in result["dry_runs"]
    )
    return f"finished dry runs of {result['records']:,} records: {runs}"


PARTS = {
    "large": (large, _large_line),
    "reading": (reading, _reading_line),
    "plan": (huge_plan, _plan_line),
    "dag": (dag, _dag_line),
}


def main() -> None:
    """Measure, print, write the result."""
    parser = Parser(__doc__, parts=list(PARTS), peer="torch_geometric")
    parser.add_argument("--folder", type=Path, help="where the scratch folders go; the system's")
    options = parser.parse_args()
    lines = []
    for name in [options.only] if options.only else PARTS:
        measure, line = PARTS[name]
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            result = measure(Path(folder), options.peer)
        content = read_result("scale")
        content[name] = rounded(result) | {"machine": machine()}
        if options.write:
            write_result("scale", content)
        lines.append(line(result))
    print("; ".join(lines))


if __name__ == "__main__":
    main()
