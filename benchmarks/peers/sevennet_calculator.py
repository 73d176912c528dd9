"""SevenNet's own calculator as the peer of `benchmarks/speed/sevennet.py`, in a Python environment of its own.

Started by that script, as `PYTHON benchmarks/peers/sevennet_calculator.py FOLDER THREADS`. The folder has a
`CASE.extxyz` for each request. It reads one request a line, `CHECKPOINT CASE`, evaluates energy, forces and stress
anew, and answers with energy, the root mean square of the forces, and wall and processor seconds.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase.io import read

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sevenn
    from sevenn.calculator import SevenNetCalculator

CHECKPOINTS = Path(sevenn.__file__).parent / "pretrained_potentials"


def main() -> None:
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps({"sevenn": sevenn.__version__, "torch": torch.__version__}), flush=True)
    calculators: dict[str, SevenNetCalculator] = {}
    for line in sys.stdin:
        checkpoint, case = line.split()
        if checkpoint not in calculators:
            calculators[checkpoint] = SevenNetCalculator(
                str(CHECKPOINTS / checkpoint), device="cpu", file_type="checkpoint"
            )
        atoms = read(folder / f"{case}.extxyz")
        atoms.calc = calculators[checkpoint]
        atoms.calc.reset()
        wall, processor = time.perf_counter(), time.process_time()
        forces = atoms.get_forces()
        atoms.get_stress()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        rms = float(np.sqrt(np.square(forces).mean()))
        print(json.dumps([atoms.get_potential_energy(), rms, wall, processor]), flush=True)


if __name__ == "__main__":
    main()
