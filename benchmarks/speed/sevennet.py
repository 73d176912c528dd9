"""Published SevenNet potentials in atomloom, alongside SevenNet's own calculator.

    python -m benchmarks.speed.sevennet [--only NAME] [--peer PYTHON]

Energy, forces and stress of one structure by the ASE calculators of both, neighbours included, taking turns; processor
seconds on one thread. `--peer PYTHON` names an interpreter that has sevenn. Writes benchmarks/results/sevennet.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write

from atomloom.config.foundation import POTENTIALS
from atomloom.inference.predict import load_model
from atomloom.potentials.calculator import AtomloomCalculator
from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, machine, read_result, rounded, write_result
from benchmarks.common.timing import Seconds, in_turns, processor

NAMES = ("sevennet-0", "sevennet-l3i5")


def structures() -> dict[str, Atoms]:
    """Rattled crystals: 108 atoms of copper, 40 of strontium titanate."""
    copper = bulk("Cu", cubic=True) * (3, 3, 3)
    titanate = Atoms(
        "SrTiO3",
        scaled_positions=[(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)],
        cell=[3.905] * 3,
        pbc=True,
    ) * (2, 2, 2)
    for atoms in (copper, titanate):
        atoms.rattle(0.05, seed=0)
    return {"copper": copper, "titanate": titanate}


def main() -> None:
    parser = Parser(__doc__, parts=NAMES, peer="sevenn")
    parser.add_argument("--rounds", type=int, default=5, help="timed evaluations of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = read_result("sevennet")
    with tempfile.TemporaryDirectory() as scratch:
        peer = Peer(options.peer, "sevennet_calculator.py", scratch, 1) if options.peer else None
        for case, atoms in structures().items():
            write(Path(scratch, f"{case}.extxyz"), atoms)
            for name in [options.only] if options.only else NAMES:
                row = compare(name, case, atoms, peer, options.rounds)
                results[f"{name}, {case}"] = row
                print(f"{name}, {case} ({row['atoms']} atoms):", row)
        if peer is not None:
            peer.close()
    if options.write:
        write_result("sevennet", results)


def compare(
    name: str, case: str, atoms: Atoms, peer: Peer | None, rounds: int
) -> dict[str, object]:
    """Times and differences for one potential and one structure."""
    calculator = AtomloomCalculator(load_model(name))
    told: list[float] = []

    def ours() -> None:
        calculator.reset()
        atoms.calc = calculator
        atoms.get_forces()
        atoms.get_stress()

    def theirs() -> Seconds:
        assert peer is not None
        told[:] = peer.ask(f"{POTENTIALS[name]} {case}")
        return Seconds(told[2], told[3])

    times = in_turns({"atomloom": ours} | ({"sevenn": theirs} if peer else {}), rounds)
    row: dict[str, object] = {
        "atoms": len(atoms),
        "seconds": {who: processor(each) for who, each in times.items()},
        "machine": machine("torch", threads=1),
    }
    if peer is not None:
        rms = float(np.sqrt(np.square(atoms.get_forces()).mean()))
        row["peer"] = peer.versions
        row["ratio"] = processor(times["sevenn"]) / processor(times["atomloom"])
        row["difference in energy, eV"] = abs(atoms.get_potential_energy() - told[0])
        row["difference in rms force, eV/A"] = abs(rms - told[1])
    return rounded(row)


if __name__ == "__main__":
    main()
