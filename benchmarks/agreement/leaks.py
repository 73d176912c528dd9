"""The leak guard on 36,737 crystals in which duplicates were planted, alongside pymatgen's StructureMatcher.

    python -m benchmarks.agreement.leaks [--planted 2000] [--sample 150]

Crystals of the Materials Project are divided at random (80, 10, 10 %). Copies of validation and test
crystals go into training, each written in another way: a supercell, another cell, turned, mirrored, moved,
with atoms permuted or in other images of the cell, with 1e-4 A of noise on each coordinate, and all of it
together. The guard has to find each of them; what else it finds is counted. Then pairs are judged by both: a
sample of the confirmed ones, the candidates that were not confirmed, and pairs of one formula and density
that were no candidates.
Writes benchmarks/results/leaks.json.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure as Crystal

from atomloom.config import Split
from atomloom.data.congruence import Motif, congruent
from atomloom.data.duplicates import find_candidates, find_duplicates
from atomloom.readers import enumerate_records, parse_record
from atomloom.structures import Structure
from atomloom.structures.composition import reduced_formula
from atomloom.structures.table import StructureTable
from benchmarks.common.results import Parser, data_path, machine, write_result

TOLERANCE = Split().duplicate_tolerance
NOISE = 1e-4
WAYS = ("supercell", "other cell", "unwrapped", "moved", "permuted", "turned", "mirrored", "noise")
MOST_ATOMS = 60
"""Atoms of a structure that pymatgen is asked about: it takes seconds for large ones."""


@dataclass(frozen=True)
class Chunk:
    table: StructureTable


def written_otherwise(structure: Structure, ways: tuple[str, ...], rng: Any) -> Structure:
    numbers, positions, cell = structure.numbers, structure.positions, structure.cell
    if "supercell" in ways:
        matrix = np.zeros((3, 3), dtype=int)
        while not 2 <= (size := round(abs(np.linalg.det(matrix)))) <= 6:
            matrix = rng.integers(-2, 3, (3, 3))
        grid = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3), -1).reshape(-1, 3)
        inside = np.linalg.solve(matrix.T.astype(float), grid.T).T
        moves = grid[((inside > -1e-9) & (inside < 1 - 1e-9)).all(axis=1)] @ cell
        assert len(moves) == size
        positions = (positions + moves[:, None]).reshape(-1, 3)
        numbers, cell = np.tile(numbers, size), matrix @ cell
    if "other cell" in ways:
        matrix = np.eye(3, dtype=int)
        for _ in range(4):
            a, b = rng.permutation(3)[:2]
            matrix[a] += rng.integers(-2, 3) * matrix[b]
        cell = matrix @ cell
    if "unwrapped" in ways:
        positions = positions + rng.integers(-2, 3, positions.shape) @ cell
    if "moved" in ways:
        positions = positions + rng.normal(scale=5.0, size=3)
    if "permuted" in ways:
        order = rng.permutation(len(numbers))
        numbers, positions = numbers[order], positions[order]
    if "noise" in ways:
        positions = positions + rng.normal(scale=NOISE, size=positions.shape)
    if "turned" in ways or "mirrored" in ways:
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        axes[:, 0] *= np.sign(np.linalg.det(axes)) * (-1 if "mirrored" in ways else 1)
        positions, cell = positions @ axes, cell @ axes
    return Structure(numbers, positions, cell, structure.pbc)


def read() -> list[Structure]:
    archive = data_path("mp36k_crysxpp/cif.tar.xz")
    return [parse_record(r.format, r.payload, r.id) for r in enumerate_records([archive])]


def frame_of(structures: list[Structure], splits: list[str]) -> pd.DataFrame:
    count = len(structures)
    return pd.DataFrame(
        {
            "record": np.arange(count),
            "id": np.arange(count),
            "hash": [structure.hash for structure in structures],
            "split": splits,
            "formula": [reduced_formula(structure.numbers) for structure in structures],
            "chunk": 0,
            "row": np.arange(count),
        }
    )


class Judges:
    """Ours and pymatgen's verdict on pairs, with the time each takes."""

    def __init__(self, table: StructureTable) -> None:
        self.table = table
        self.matcher = StructureMatcher(scale=False)
        # Lattices to about the tolerance: its distances leave strain out.
        self.strict = StructureMatcher(scale=False, ltol=4e-4, angle_tol=0.02)
        self.seconds: Counter[str] = Counter()
        self.pairs = 0

    def ours(self, a: int, b: int) -> bool:
        start = time.process_time()
        verdict = congruent(Motif.of(self.table, a), Motif.of(self.table, b), TOLERANCE)
        self.seconds["ours"] += time.process_time() - start
        self.pairs += 1
        return verdict

    def theirs(self, a: int, b: int) -> str:
        start = time.process_time()
        found = self.matcher.get_rms_dist(self.crystal(a), self.crystal(b))
        self.seconds["theirs"] += time.process_time() - start
        if found is None:
            return "pymatgen finds none"
        found = self.strict.get_rms_dist(self.crystal(a), self.crystal(b))
        length = float(self.table[a].volume / len(self.table[a])) ** (1 / 3)
        if found is None or float(found[0]) * length > TOLERANCE:
            return "pymatgen finds one, farther off"
        return "pymatgen finds one to the tolerance"

    def crystal(self, row: int) -> Crystal:
        s = self.table[row]
        return Crystal(s.cell, s.numbers.tolist(), s.positions, coords_are_cartesian=True)

    def small(self, row: int) -> bool:
        return bool(np.diff(self.table.node_ptr)[row] <= MOST_ATOMS)


def alike(frame: pd.DataFrame, table: StructureTable) -> list[tuple[int, int]]:
    """Pairs of one formula in different splits whose volumes per atom agree to 0.1 %."""
    volume = np.abs(np.linalg.det(table.cell)) / np.diff(table.node_ptr)
    pairs = []
    for _, rows in frame.groupby("formula"):
        places = rows.index[np.argsort(volume[rows.index], kind="stable")].to_numpy()
        for a, b in pairwise(places):
            if frame["split"][a] != frame["split"][b] and volume[b] < 1.001 * volume[a]:
                pairs.append((int(a), int(b)))
    return pairs


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--planted", type=int, default=2000, help="how many duplicates")
    parser.add_argument("--sample", type=int, default=150, help="pairs of each kind for pymatgen")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    structures = read()
    count = len(structures)
    splits = rng.choice(["train", "val", "test"], count, p=[0.8, 0.1, 0.1]).tolist()
    held = np.flatnonzero(np.array(splits) != "train")
    originals = rng.choice(held, given.planted, replace=False)
    kinds = [(way,) for way in WAYS] + [tuple(w for w in WAYS if w != "mirrored")] * len(WAYS)
    ways = [kinds[n % len(kinds)] for n in range(given.planted)]
    pairs = zip(originals, ways, strict=True)
    structures += [written_otherwise(structures[row], way, rng) for row, way in pairs]
    splits += ["train"] * given.planted
    frame = frame_of(structures, splits)
    table = StructureTable.from_structures(structures)

    find_duplicates([Chunk(table.take(np.arange(4)))] * 4, frame[:4], TOLERANCE)  # compiles
    judges = Judges(table)
    judges.ours(0, 0)
    judges.seconds.clear()
    start, cpu = time.perf_counter(), time.process_time()
    found = find_duplicates([Chunk(table)], frame, TOLERANCE)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    rows = set(found["record"])
    planted = Counter(" + ".join(way) for way in ways)
    seen = Counter(" + ".join(way) for n, way in enumerate(ways) if count + n in rows)
    unique = frame.drop_duplicates("hash")
    places = unique.index.to_numpy()
    candidates = [
        (int(places[a]), int(places[b]))
        for a, others in find_candidates([Chunk(table)], unique, TOLERANCE)
        for b in others
    ]
    print(f"{len(frame):,} structures: {seconds:.1f} s ({cpu:.1f} s of CPU time)")
    for way, number in planted.items():
        print(f"  {way}: {seen[way]}/{number} found")
    others = sorted(row for row in rows if row < count)
    print(f"  {len(candidates):,} candidate pairs; {len(others)} further rows found")

    verdicts: dict[str, Counter[str]] = {}
    near = list(zip(found["record"], found["other_id"], strict=True))
    known = set(candidates)
    refused = [pair for pair in candidates if not judges.ours(*pair)]
    strangers = [pair for pair in alike(frame[:count], table) if not known & {pair, pair[::-1]}]
    for name, group in (
        ("confirmed", near),
        ("not confirmed", refused),
        ("no candidates", strangers),
    ):
        group = [pair for pair in group if all(map(judges.small, pair))]
        chosen = rng.permutation(len(group))[: given.sample]
        verdicts[name] = Counter({"of": len(group)})
        for a, b in (group[n] for n in chosen):
            verdicts[name][judges.theirs(int(a), int(b))] += 1
        print(f"  {name}: {dict(verdicts[name])}", flush=True)
    asked = sum(sum(v.values()) - v["of"] for v in verdicts.values())
    result = {
        "machine": machine("pymatgen"),
        "structures": len(frame),
        "tolerance": TOLERANCE,
        "noise": NOISE,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "planted": {way: [seen[way], number] for way, number in planted.items()},
        "found": sum(seen.values()),
        "of": given.planted,
        "further_rows": len(others),
        "candidate_pairs": len(candidates),
        "rows_confirmed": len(found),
        "pairs_judged": {name: dict(counts) for name, counts in verdicts.items()},
        "ms_a_pair": {
            "ours": 1e3 * judges.seconds["ours"] / max(judges.pairs - 1, 1),
            "pymatgen": 1e3 * judges.seconds["theirs"] / max(asked, 1),
        },
    }
    if given.write:
        write_result("leaks", result)
    print(
        f"leaks: {result['found']}/{given.planted} found in {seconds:.1f} s; {result['ms_a_pair']}"
    )


if __name__ == "__main__":
    main()
