"""Reading structures: milliseconds per record, alongside gemmi, pymatgen and ASE on the same texts.

    python -m benchmarks.speed.readers [--only NAME]

Texts are in memory; what is measured is from a record's bytes to a checked structure (ours), or to
the library's own object (the peers). CPU time of one thread, the min of several rounds, so that a
busy machine matters little; peers that are slow read a part of the records. Writes benchmarks/results/readers.json.
"""

from __future__ import annotations

import io
import itertools
import json
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import ase.io
import gemmi
from pymatgen.core import Lattice
from pymatgen.core import Structure as Crystal
from pymatgen.io.cif import CifParser, CifWriter
from pymatgen.io.vasp import Poscar

from atomloom.config import Checks
from atomloom.readers import RawRecord, enumerate_records, parse_record
from atomloom.structures.checks import check_structure
from benchmarks.common.results import Parser, data_path, machine, write_result

ROUNDS = 5
SECONDS = 1.0
"""Rounds go on for at least this; a slow peer's round is kept to it by giving it fewer records."""

Task = tuple[Sequence[RawRecord], dict[str, Callable[[str], Any]]]


def take(path: str, count: int) -> list[RawRecord]:
    return list(itertools.islice(enumerate_records([data_path(path)]), count))


# --- peers ----------------------------------------------------------------------------------------


def gemmi_cif(text: str) -> Any:
    """Up to gemmi's own C++ objects: no array, no check of disorder, so a lower bound for Python."""
    block = gemmi.cif.read_string(text).sole_block()
    return gemmi.make_small_structure_from_block(block).get_all_unit_cell_sites()


def pymatgen_cif(text: str) -> Any:
    return CifParser.from_str(text).parse_structures(primitive=False)[0]


def in_ase(format: str) -> Callable[[str], Any]:
    return lambda text: ase.io.read(io.StringIO(text), format=format)


def pymatgen_json(text: str) -> Any:
    return Crystal.from_dict(json.loads(text))


# --- what is read ---------------------------------------------------------------------------------


def cif_p1() -> Task:
    """Materials Project CIFs without symmetry."""
    peers = {"gemmi": gemmi_cif, "pymatgen": pymatgen_cif, "ase": in_ase("cif")}
    return take("mp36k_crysxpp/cif.tar.xz", 300), peers


def cif_symmetric() -> Task:
    """CIFs with the operations of their space group, as pymatgen writes them."""
    texts = []
    for size in range(20):
        for crystal in (
            Crystal.from_spacegroup(
                "Pm-3m",
                Lattice.cubic(3.9 + 0.01 * size),
                ["Sr", "Ti", "O"],
                [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]],
            ),
            Crystal.from_spacegroup(
                "P4_2/mnm",
                Lattice.tetragonal(4.5 + 0.01 * size, 2.9587),
                ["Ti", "O"],
                [[0, 0, 0], [0.30478, 0.30478, 0]],
            ),
            Crystal.from_spacegroup(
                "R-3c",
                Lattice.hexagonal(4.7 + 0.01 * size, 12.9933),
                ["Al", "O"],
                [[0, 0, 0.35216], [0.30624, 0, 0.25]],
            ),
        ):
            texts += [str(CifWriter(crystal, symprec=1e-3))]
    records = [
        RawRecord(str(n), 0, "", -1, len(text), n, "cif", text.encode())
        for n, text in enumerate(texts)
    ]
    return records, {"gemmi": gemmi_cif, "pymatgen": pymatgen_cif, "ase": in_ase("cif")}


def poscar() -> Task:
    """JARVIS crystals as POSCAR."""
    records = take("alignn_sample/sample_data.tar.gz", 70)
    return records, {
        "pymatgen": lambda text: Poscar.from_str(text).structure,
        "ase": in_ase("vasp"),
    }


def extxyz_small() -> Task:
    """Ethanol, 9 atoms, with forces."""
    return take("rmd17/ethanol_test_01.xyz.xz", 1000), {"ase": in_ase("extxyz")}


def extxyz_large() -> Task:
    """Copper, up to 108 atoms, with forces."""
    return take("mlearn/Cu_train.extxyz.xz", 262), {"ase": in_ase("extxyz")}


def xsf() -> Task:
    """Titanium oxides, 6 to 95 atoms, with forces."""
    return take("aenet_tio2/dir_xsf.tar.gz", 300), {"ase": in_ase("xsf")}


def pymatgen_dict() -> Task:
    """Matbench crystals as pymatgen's JSON."""
    return take("matbench_phonons/matbench_phonons.json.gz", 300), {"pymatgen": pymatgen_json}


TASKS: dict[str, Callable[[], Task]] = {
    task.__name__: task
    for task in (cif_p1, cif_symmetric, poscar, extxyz_small, extxyz_large, xsf, pymatgen_dict)
}


# --- measuring ------------------------------------------------------------------------------------


def milliseconds(read: Callable[[Any], Any], items: Sequence[Any]) -> float:
    """Min CPU time per record over the rounds."""
    start = time.process_time()
    read(items[0])  # what is imported or compiled once does not count
    start = time.process_time()
    read(items[0])
    first = time.process_time() - start
    part = items[: max(10, min(len(items), int(SECONDS / max(first, 1e-6))))]
    best, begin, rounds = float("inf"), time.process_time(), 0
    while rounds < ROUNDS or time.process_time() - begin < SECONDS:
        start = time.process_time()
        for item in part:
            read(item)
        best = min(best, (time.process_time() - start) / len(part))
        rounds += 1
    return best * 1e3


def streaming() -> dict[str, float]:
    """Records per second out of their archives, without parsing."""
    found = {}
    for path in ("mp36k_crysxpp/cif.tar.xz", "perov5/perov5_heat_ref.all_structures.json.zip"):
        start = time.process_time()
        count = sum(1 for _ in enumerate_records([data_path(path)]))
        found[path] = count / (time.process_time() - start)
    return found


def main() -> None:
    parser = Parser(__doc__, parts=[*TASKS, "streaming"])
    options = parser.parse_args()
    only = options.only
    warnings.simplefilter("ignore")
    checks = Checks(max_volume_per_atom=1e9)  # ethanol is in its 50 A box here
    results: dict[str, Any] = {}
    print(f"{'ms per record':16} {'ours':>8} {'check':>8}   peers")
    for name, task in TASKS.items():
        if only not in (None, name):
            continue
        records, peers = task()
        read = lambda record: parse_record(record.format, record.payload, record.id)  # noqa: E731
        structures = [read(record) for record in records]
        row = {
            "records": len(records),
            "atoms_mean": sum(map(len, structures)) / len(structures),
            "ours_ms": milliseconds(read, records),
            "check_ms": milliseconds(lambda s: check_structure(s, checks), structures),
        }
        texts = [record.payload.decode() for record in records]
        for peer, read_text in peers.items():
            row[f"{peer}_ms"] = milliseconds(read_text, texts)
        results[name] = row
        others = "  ".join(
            f"{p} {row[f'{p}_ms']:.3f} ({row[f'{p}_ms'] / row['ours_ms']:.1f}x)" for p in peers
        )
        print(f"{name:16} {row['ours_ms']:8.4f} {row['check_ms']:8.4f}   {others}", flush=True)
    if only in (None, "streaming"):
        results["streaming_records_per_second"] = streaming()
        for path, rate in results["streaming_records_per_second"].items():
            print(f"{rate:10,.0f} records/s out of {path}")
    if only is None and options.write:
        about = machine("gemmi", "pymatgen", "ase")
        write_result("readers", {"machine": about, "results": results})
    slowest = max((r["ours_ms"] for r in results.values() if "ours_ms" in r), default=0.0)
    print(f"readers: {len(results)} parts, slowest format {slowest:.3f} ms per record")


if __name__ == "__main__":
    main()
