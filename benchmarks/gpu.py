"""The GPU benchmark, `benchmarks/speed/gpu.py`, from a bare checkout: `python benchmarks/gpu.py`, with its options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from benchmarks.speed.gpu import main

    main()
