"""From structures to graphs on disk, alongside the tools people use for it today, on one core.

    python -m benchmarks.speed.data_plane [--only graphs | mp36k]

graphs: k-nearest graphs (search, selection, shard) of all matbench_phonons crystals and of random
crystals of 24 atoms, alongside jarvis-tools' Graph.atom_dgl_multigraph (without its line graph) and
pymatgen's bare neighbour list to 8 A; radius graphs alongside vesin, matscipy and pymatgen; writing and
reading of shards. Without the data sets the row of real crystals is left out.
mp36k: 36,737 CIFs from one compressed archive to written graph shards and the split, on all cores, stage by
stage by the command line, then by the workflow, in seconds of the clock and of the processors; and the dry
run of the finished workflow.
Ratios are of one run, rounds in turns, medians. Updates its part of
benchmarks/results/data_plane.json.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from atomloom.config.graph import GraphSpec
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.store import GraphStore, read_graphs, write_graphs
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.common.results import (
    ROOT,
    Parser,
    data_path,
    find_data,
    machine,
    read_result,
    rounded,
    write_result,
)
from benchmarks.common.structures import random_crystals
from benchmarks.common.timing import clock, in_turns

ROUNDS = 5
KNN = GraphSpec(cutoff=8.0, max_neighbors=12)
RADIUS = 5.0
STORE_SHARDS = 100


# --- structures -----------------------------------------------------------------------------------


def phonon_crystals() -> list[Structure] | None:
    """All crystals of matbench_phonons, if they are here."""
    path = find_data("matbench_phonons/matbench_phonons.json.gz")
    if path is None:
        return None
    from pymatgen.core import Structure as Crystal

    with gzip.open(path) as file:
        content = json.load(file)
    column = content["columns"].index("structure")
    crystals = [Crystal.from_dict(row[column]) for row in content["data"]]
    return [
        Structure(c.atomic_numbers, c.cart_coords, c.lattice.matrix, [True] * 3) for c in crystals
    ]


# --- graphs ---------------------------------------------------------------------------------------


def graphs() -> dict:
    """All measurements of this part."""
    _compile()
    return {
        "phonons": _phonons(),
        "knn_24_atoms": _knn_beside_peers(),
        "radius": [_radius_beside_peers(n) for n in (8, 24, 200, 2000)],
        "shards": _shards(),
    }


def _compile() -> None:
    build_graphs(StructureTable.from_structures(random_crystals(2, 4)), KNN)


def _phonons() -> dict | None:
    crystals = phonon_crystals()
    if crystals is None:
        print("matbench_phonons is not here: its row is left out")
        return None
    table = StructureTable.from_structures(crystals)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phonons.zarr.zip"
        built: GraphTable | None = None

        def search() -> None:
            nonlocal built
            built = build_graphs(table, KNN)

        seconds = _medians(
            {
                "search": search,
                "search_and_write": lambda: write_graphs(path, build_graphs(table, KNN), KNN),
            },
            rounds=4 * ROUNDS,
        )
        size = path.stat().st_size
    assert built is not None
    rates = {name: len(table) / value for name, value in seconds.items()}
    _row("matbench_phonons, k = 12, search and selection", rates["search"], "crystals/s")
    _row("matbench_phonons, k = 12, and shard on disk", rates["search_and_write"], "crystals/s")
    return {
        "crystals": len(table),
        "edges": len(built.src),
        "bytes": size,
        "search_per_second": rates["search"],
        "search_and_write_per_second": rates["search_and_write"],
    }


def _knn_beside_peers() -> dict:
    from jarvis.core.atoms import Atoms
    from jarvis.core.graphs import Graph
    from pymatgen.core import Lattice
    from pymatgen.core import Structure as Crystal

    crystals = random_crystals(2000, 24)
    table = StructureTable.from_structures(crystals)
    few, some = 5, 50
    jarvis = [
        Atoms(lattice_mat=c.cell, coords=c.positions, elements=_symbols(c), cartesian=True)
        for c in crystals[:few]
    ]
    pymatgen = [
        Crystal(Lattice(c.cell), c.numbers.tolist(), c.positions, coords_are_cartesian=True)
        for c in crystals[:some]
    ]

    def with_jarvis() -> None:
        for atoms in jarvis:
            Graph.atom_dgl_multigraph(
                atoms, cutoff=8.0, max_neighbors=12, compute_line_graph=False, use_canonize=True
            )

    def with_pymatgen() -> None:
        for crystal in pymatgen:
            crystal.get_neighbor_list(8.0)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "crystals.zarr.zip"
        seconds = _medians(
            {
                "search": lambda: build_graphs(table, KNN),
                "search_and_write": lambda: write_graphs(path, build_graphs(table, KNN), KNN),
                "jarvis": with_jarvis,
                "pymatgen": with_pymatgen,
            }
        )
    counts = {"search": 2000, "search_and_write": 2000, "jarvis": few, "pymatgen": some}
    rates = {name: counts[name] / value for name, value in seconds.items()}
    _row("24 atoms, k = 12, search and selection", rates["search"], "crystals/s")
    _row("24 atoms, k = 12, and shard on disk", rates["search_and_write"], "crystals/s")
    _row("    jarvis-tools atom_dgl_multigraph", rates["jarvis"], "crystals/s")
    _row("    pymatgen get_neighbor_list, no selection", rates["pymatgen"], "crystals/s")
    return {
        "search_per_second": rates["search"],
        "search_and_write_per_second": rates["search_and_write"],
        "jarvis_per_second": rates["jarvis"],
        "pymatgen_per_second": rates["pymatgen"],
        "times_jarvis": rates["search"] / rates["jarvis"],
        "times_pymatgen": rates["search"] / rates["pymatgen"],
    }


def _radius_beside_peers(atoms: int) -> dict:
    import vesin
    from matscipy.neighbours import neighbour_list
    from pymatgen.core import Lattice
    from pymatgen.core import Structure as Crystal

    crystals = random_crystals(max(4000 // atoms, 1), atoms)
    table = StructureTable.from_structures(crystals)
    spec = GraphSpec(neighbors="radius", cutoff=RADIUS)
    pymatgen = [
        Crystal(Lattice(c.cell), c.numbers.tolist(), c.positions, coords_are_cartesian=True)
        for c in crystals
    ]

    def with_vesin() -> int:
        search = vesin.NeighborList(cutoff=RADIUS, full_list=True, n_threads=1)
        return sum(
            len(search.compute(c.positions, c.cell, True, quantities="ijS")[0]) for c in crystals
        )

    def with_matscipy() -> int:
        return sum(
            len(
                neighbour_list(
                    "ijS", cutoff=RADIUS, positions=c.positions, cell=c.cell, pbc=np.ones(3, bool)
                )[0]
            )
            for c in crystals
        )

    edges = len(build_graphs(table, spec).src)
    assert with_vesin() == with_matscipy() == edges, "the peers find other pairs"
    seconds = _medians(
        {
            "ours": lambda: build_graphs(table, spec),
            "vesin": with_vesin,
            "matscipy": with_matscipy,
            "pymatgen": lambda: [crystal.get_neighbor_list(RADIUS) for crystal in pymatgen],
        }
    )
    rates = {name: len(crystals) / value for name, value in seconds.items()}
    _row(f"{atoms} atoms, radius {RADIUS:g} A", rates["ours"], "crystals/s")
    for peer in ("vesin", "matscipy", "pymatgen"):
        _row(f"    {peer}", rates[peer], "crystals/s")
    return {"atoms": atoms, "edges": edges, "per_second": rates}


def _shards() -> dict:
    table = build_graphs(StructureTable.from_structures(random_crystals(2000, 12, seed=1)), KNN)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "000.zarr.zip"
        seconds = _medians(
            {
                "write": lambda: write_graphs(first, table, KNN),
                "read": lambda: read_graphs(first),
                "read_unverified": lambda: read_graphs(first, verify=False),
            },
            rounds=4 * ROUNDS,
        )
        for number in range(1, STORE_SHARDS):
            shutil.copyfile(first, Path(folder) / f"{number:03}.zarr.zip")
        store = GraphStore(folder)
        seconds |= _medians(
            {
                "load": lambda: store.load(threads=1),
                "load_unverified": lambda: store.load(threads=1, verify=False),
            },
            rounds=3,
        )
        size = first.stat().st_size
    _row(f"shard of 2,000 graphs, {len(table.src):,} edges: write", 1e3 * seconds["write"], "ms")
    _row("    read, digests recomputed", 1e3 * seconds["read"], "ms")
    _row("    read, checksums only", 1e3 * seconds["read_unverified"], "ms")
    _row("    size", size / 1e6, "MB")
    graph_count = 2000 * STORE_SHARDS
    _row(f"store of {graph_count:,} graphs: load, digests recomputed", seconds["load"], "s")
    _row("    load, checksums only", seconds["load_unverified"], "s")
    return {
        "graphs": len(table),
        "edges": len(table.src),
        "bytes": size,
        "write_ms": 1e3 * seconds["write"],
        "read_ms": 1e3 * seconds["read"],
        "read_unverified_ms": 1e3 * seconds["read_unverified"],
        "store_graphs": graph_count,
        "store_load_seconds": seconds["load"],
        "store_load_unverified_seconds": seconds["load_unverified"],
    }


def _symbols(structure: Structure) -> list[str]:
    from ase.data import chemical_symbols

    return [chemical_symbols[number] for number in structure.numbers]


# --- a whole data set ------------------------------------------------------------------------------

MP36K = """
dataset:
  name: mp36k
  source: {source}/cif.tar.xz
  labels:
    file: {source}/id_prop.csv.gz
    columns: [id, formation_energy, gap, fermi_energy, volume, magnetisation]
  target: formation_energy
"""


def mp36k() -> dict:
    """Seconds of each stage by the command line and of the workflow; memory of the largest process."""
    source = data_path("mp36k_crysxpp").resolve()
    _compile()
    with tempfile.TemporaryDirectory() as folder:
        alone, together = Path(folder, "alone"), Path(folder, "together")
        for place in (alone, together):
            place.mkdir()
            (place / "mp36k.yaml").write_text(MP36K.format(source=source))
        before = _processors()
        stages = {
            stage: _seconds(alone, "atomloom", stage, "--config", "mp36k.yaml")
            for stage in ("plan", "convert", "graphs", "index", "split")
        }
        commands = _processors() - before
        workflow = [
            "snakemake",
            "--snakefile",
            str(ROOT / "Snakefile"),
            "--configfile",
            "mp36k.yaml",
        ]
        workflow += ["--cores", "all", "prepare"]
        before = _processors()
        whole = _seconds(together, *workflow)
        jobs = _processors() - before
        again = _seconds(together, *workflow, "--dry-run")
        index = json.loads(next(alone.glob("results/*/index/*/index.json")).read_text())
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    both = sum(stages.values())
    _row("mp36k: command line, plan to index and split", both, "s")
    _row("mp36k: workflow", whole, "s")
    _row("mp36k: workflow, times the command line", whole / both, "")
    _row("    the same in seconds of the processors", jobs / commands, "")
    _row("mp36k: dry run when finished", again, "s")
    return {
        "cores": os.cpu_count(),
        "structures": index["structures"],
        "quarantined": index["quarantined"],
        "edges": index["edges"],
        "graph_bytes": index["bytes"],
        "stage_seconds": stages,
        "command_line_seconds": both,
        "command_line_processor_seconds": commands,
        "workflow_seconds": whole,
        "workflow_processor_seconds": jobs,
        "workflow_times_command_line": whole / both,
        "workflow_times_command_line_by_processors": jobs / commands,
        "dry_run_seconds": again,
        "largest_process_mib": memory,
    }


def _processors() -> float:
    """Seconds of all processors that processes started here have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(folder: Path, module: str, *arguments: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"{module} {arguments[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return time.perf_counter() - start


def _mp36k_line(result: dict) -> str:
    return (
        f"{result['structures']:,} CIFs of one archive become graph shards in "
        f"{result['command_line_seconds']:.0f} s by the command line on {result['cores']} cores"
    )


# --- measuring ------------------------------------------------------------------------------------


def _medians(work: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each function."""
    return {name: clock(times) for name, times in in_turns(work, rounds, warm_up=0).items()}


def _row(what: str, value: float, unit: str) -> None:
    print(f"{what:<62}{value:>12,.1f} {unit}", flush=True)


def _closing_line(result: dict) -> str:
    knn, shards = result["knn_24_atoms"], result["shards"]
    return (
        f"k-nearest graphs of 24 atoms: {knn['search_per_second']:,.0f} per second on one core, "
        f"{knn['times_jarvis']:,.0f} times jarvis-tools; a shard of {shards['graphs']:,} graphs is "
        f"written in {shards['write_ms']:.0f} ms and read in {shards['read_ms']:.0f} ms"
    )


PARTS: dict[str, tuple[Callable[[], dict], Callable[[dict], str]]] = {
    "graphs": (graphs, _closing_line),
    "mp36k": (mp36k, _mp36k_line),
}


def main() -> None:
    """Measure, print, and update the parts measured in the result file."""
    options = Parser(__doc__, parts=list(PARTS)).parse_args()
    results = read_result("data_plane")
    lines = []
    for name in [options.only] if options.only else PARTS:
        measure, closing_line = PARTS[name]
        results[name] = rounded(measure()) | {"machine": machine("numpy")}
        lines.append(closing_line(results[name]))
    if options.write:
        write_result("data_plane", results)
    print(*lines, sep="; ")


if __name__ == "__main__":
    main()
