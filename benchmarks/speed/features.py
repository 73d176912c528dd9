"""Derived features of the crystals of matbench_phonons, and of frequencies the same by ASE and SevenNet's calculator.

    python -m benchmarks.speed.features [--count N] [--peer PYTHON] [--peer-count N]

Processor seconds per structure on one thread, of a sample spread over the data set; the median of rounds after one that
warms up. `--peer PYTHON` names an interpreter that has sevenn: ASE's `Vibrations`, which displaces all atoms along all axes,
of every so many-th crystal of the sample, once. Writes benchmarks/results/features.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from ase.io import write

from atomloom.config.features import Feature
from atomloom.config.foundation import POTENTIALS
from atomloom.features.gamma_frequencies import frequencies, repeated
from atomloom.features.registry import open_source
from atomloom.potentials.teachers import open_teacher
from atomloom.readers.registry import parse_record
from atomloom.readers.sources import enumerate_records, list_files
from atomloom.structures.adapters import to_ase
from atomloom.structures.table import StructureTable
from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, data_path, machine, read_result, rounded, write_result
from benchmarks.common.timing import in_turns, processor

POTENTIAL = "sevennet-l3i5"
SOURCES = {
    "composition": Feature(source="composition"),
    "embedding": Feature(source="embedding", model=POTENTIAL, options={"device": "cpu"}),
    "gamma_frequencies": Feature(
        source="gamma_frequencies", model=POTENTIAL, options={"device": "cpu"}
    ),
}


def main() -> None:
    parser = Parser(__doc__, peer="sevenn")
    parser.add_argument("--count", type=int, default=50, help="crystals of the sample")
    parser.add_argument("--peer-count", type=int, default=5, help="of them by the peer")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = sample(options.count)
    found = read_result("features")
    sources = {name: open_source(name, feature) for name, feature in SOURCES.items()}
    work = {
        name: (lambda source=source: list(source.describe(table)))
        for name, source in sources.items()
    }
    times = in_turns(work, options.rounds)
    seconds = {name: processor(each) / len(table) for name, each in times.items()}
    found["sample"] = rounded(
        {
            "structures": len(table),
            "atoms": len(table.numbers),
            "failures": sum(bool(one.failure) for each in work.values() for one in each()),
            "processor seconds per structure": seconds,
            "machine": machine("torch", "spglib", threads=1),
        }
    )
    print(found["sample"])
    if options.write:
        write_result("features", found)
    if options.peer:
        rows = np.unique(np.linspace(0, len(table) - 1, options.peer_count).astype(int))
        found["frequencies"] = compare(table.take(rows), options.peer, options.rounds)
        print(found["frequencies"])
        if options.write:
            write_result("features", found)


def sample(count: int) -> StructureTable:
    """Crystals spread evenly over the data set."""
    source = str(data_path("matbench_phonons") / "matbench_phonons.json.gz")
    records = list(enumerate_records(list_files(source, None, "auto"), "auto", {}, None))
    rows = np.unique(np.linspace(0, len(records) - 1, count).astype(int))
    chosen = [records[row] for row in rows]
    return StructureTable.from_structures(
        [parse_record(one.format, one.payload, one.id, {}) for one in chosen]
    )


def compare(table: StructureTable, peer: str, rounds: int) -> dict[str, object]:
    """Frequencies of the same cells by both: displacements, times, and the largest difference."""
    feature = SOURCES["gamma_frequencies"]
    teach = open_teacher(feature.teacher, stress=False)
    asked: list[int] = []

    def counting(images: StructureTable):
        asked.append(len(images))
        return teach(images)

    source = open_source("gamma_frequencies", feature)
    times = in_turns({"atomloom": lambda: list(source.describe(table))}, rounds)["atomloom"]
    images, spent, apart = 0, 0.0, []
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (scratch, POTENTIALS[POTENTIAL], feature.displacement)
        other = Peer(peer, "sevennet_vibrations.py", *arguments)
        for row in range(len(table)):
            structure = table[row]
            small = len(structure) <= feature.supercell_max_atoms
            cell = repeated(structure, feature.supercell) if small else structure
            write(Path(scratch, f"{row}.extxyz"), to_ase(cell))
            count, theirs, _, seconds = other.ask(str(row))
            images, spent = images + count, spent + seconds
            ours = frequencies(counting, structure, feature)
            apart.append(abs(ours.max() - max(theirs)))
            print(
                f"{row}: {len(cell)} atoms, {ours.max():.2f} and {max(theirs):.2f} cm^-1",
                flush=True,
            )
        other.close()
    each = processor(times) / len(table)
    return rounded(
        {
            "structures": len(table),
            "displaced images": {"atomloom": sum(asked), "ASE": images},
            "processor seconds per structure": {"atomloom": each, "ASE": spent / len(table)},
            "ratio": spent / len(table) / each,
            "ratio per image": spent / images / (processor(times) / sum(asked)),
            "largest difference of a highest frequency, cm^-1": max(apart),
            "machine": machine("torch", "ase", "spglib", threads=1),
            "peer": other.versions,
        }
    )


if __name__ == "__main__":
    main()
