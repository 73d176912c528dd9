"""Derived features of the crystals of matbench_phonons, and of frequencies the same by ASE and SevenNet's calculator.

    python -m benchmarks.speed.features [--only PART] [--count N] [--peer PYTHON] [--peer-count N]

Processor seconds per structure on one thread, of a sample spread over the data set; the median of rounds after one that
warms up. `--peer PYTHON` names an interpreter that has sevenn: ASE's `Vibrations`, which displaces all atoms along all axes,
of some crystals of the sample, by turns with ours, once each. Writes benchmarks/results/features.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.io import write

from atomloom.config.features import Feature
from atomloom.config.foundation import POTENTIALS
from atomloom.features.gamma_frequencies import frequencies, repeated
from atomloom.features.registry import open_source
from atomloom.potentials.teachers import Label, open_teacher
from atomloom.readers.registry import parse_record
from atomloom.readers.sources import enumerate_records, list_files
from atomloom.structures.adapters import to_ase
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, data_path, machine, read_result, rounded, write_result
from benchmarks.common.timing import in_turns, processor, timed

PARTS = ("sources", "frequencies")
POTENTIAL = "sevennet-l3i5"
SOURCES = {
    "composition": Feature(source="composition"),
    "embedding": Feature(source="embedding", model=POTENTIAL, options={"device": "cpu"}),
    "gamma_frequencies": Feature(
        source="gamma_frequencies", model=POTENTIAL, options={"device": "cpu"}
    ),
}


def main() -> None:
    parser = Parser(__doc__, parts=PARTS, peer="sevenn")
    parser.add_argument("--count", type=int, default=50, help="crystals of the sample")
    parser.add_argument("--peer-count", type=int, default=5, help="of them by the peer")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = sample(options.count)
    found = read_result("features")

    def keep(part: str, row: dict[str, Any]) -> None:
        print(f"{part}: {row}", flush=True)
        found[part] = row
        if options.write:
            write_result("features", found)

    if options.only != "frequencies":
        keep("sources", each_source(table, options.rounds))
    if options.only != "sources" and options.peer:
        rows = np.unique(np.linspace(0, len(table) - 1, options.peer_count).astype(int))
        compare(table.take(rows), options.peer, lambda row: keep("frequencies", row))


def each_source(table: StructureTable, rounds: int) -> dict[str, Any]:
    """Time of each source per structure."""
    sources = {name: open_source(name, feature) for name, feature in SOURCES.items()}
    work = {
        name: (lambda source=source: list(source.describe(table)))
        for name, source in sources.items()
    }
    times = in_turns(work, rounds)
    seconds = {name: processor(each) / len(table) for name, each in times.items()}
    return rounded(
        {
            "structures": len(table),
            "atoms": len(table.numbers),
            "processor seconds per structure": seconds,
            "machine": machine("torch", "spglib", threads=1),
        }
    )


def sample(count: int) -> StructureTable:
    """Crystals spread evenly over the data set."""
    source = str(data_path("matbench_phonons") / "matbench_phonons.json.gz")
    records = list(enumerate_records(list_files(source, None, "auto"), "auto", {}, None))
    rows = np.unique(np.linspace(0, len(records) - 1, count).astype(int))
    chosen = [records[row] for row in rows]
    return StructureTable.from_structures(
        [parse_record(one.format, one.payload, one.id, {}) for one in chosen]
    )


def compare(
    table: StructureTable, peer: str, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Frequencies of the same cells by both, taking turns: displacements, times, and the largest difference.

    `tell` is told after each crystal what was found so far.
    """
    feature = SOURCES["gamma_frequencies"]
    teach = open_teacher(feature.teacher, stress=False)
    asked: list[int] = []

    def counting(images: StructureTable) -> Iterator[Label]:
        asked.append(len(images))
        return teach(images)

    own: list[np.ndarray] = []

    def ask(structure: Structure) -> None:
        own.append(frequencies(counting, structure, feature))

    ask(table[0])  # compiles
    asked.clear()
    theirs, images, ours, apart = 0.0, 0, 0.0, []
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (scratch, POTENTIALS[POTENTIAL], feature.displacement)
        other = Peer(peer, "sevennet_vibrations.py", *arguments)
        for place in range(len(table)):
            structure = table[place]
            small = len(structure) <= feature.supercell_max_atoms
            cell = repeated(structure, feature.supercell) if small else structure
            write(Path(scratch, f"{place}.extxyz"), to_ase(cell))
            ours += timed(partial(ask, structure)).processor
            count, found, _, seconds = other.ask(str(place))
            images, theirs = images + count, theirs + seconds
            apart.append(abs(own[-1].max() - max(found)))
            row = {
                "structures": place + 1,
                "displaced images": {"atomloom": sum(asked), "ASE": images},
                "processor seconds per structure": {
                    "atomloom": ours / (place + 1),
                    "ASE": theirs / (place + 1),
                },
                "ratio": theirs / ours,
                "ratio per image": theirs / images / (ours / sum(asked)),
                "largest difference of a highest frequency, cm^-1": max(apart),
                "machine": machine("torch", "ase", "spglib", threads=1),
                "peer": other.versions,
            }
            tell(rounded(row))
        other.close()
    return rounded(row)


if __name__ == "__main__":
    main()
