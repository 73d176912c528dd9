"""ASE's vibrations with SevenNet's own calculator, the peer of `benchmarks/speed/features.py`, in a Python environment
of its own.

Started by that script, as `PYTHON benchmarks/peers/sevennet_vibrations.py FOLDER CHECKPOINT DISPLACEMENT`. The folder has
a `CASE.extxyz` for each request, which is one line, the CASE. Each atom is displaced along each axis in both directions;
the answer is the number of displaced images, all frequencies in cm^-1 in ascending order (imaginary ones negative), and
wall and processor seconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase.io import read
from ase.vibrations import Vibrations

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sevenn
    from sevenn.calculator import SevenNetCalculator

CHECKPOINTS = Path(sevenn.__file__).parent / "pretrained_potentials"


def main() -> None:
    warnings.filterwarnings("ignore")
    folder, checkpoint, displacement = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    torch.set_num_threads(1)
    print(json.dumps({"sevenn": sevenn.__version__, "torch": torch.__version__}), flush=True)
    calculator = SevenNetCalculator(
        str(CHECKPOINTS / checkpoint), device="cpu", file_type="checkpoint"
    )
    for line in sys.stdin:
        atoms = read(folder / f"{line.strip()}.extxyz")
        atoms.calc = calculator
        with tempfile.TemporaryDirectory() as scratch:
            wall, processor = time.perf_counter(), time.process_time()
            vibrations = Vibrations(atoms, name=f"{scratch}/images", delta=displacement)
            vibrations.run()
            found = vibrations.get_frequencies()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
        frequencies = np.sort(found.real - found.imag)
        answer = [6 * len(atoms), frequencies.tolist(), wall, processor]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
