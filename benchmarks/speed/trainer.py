"""What a training step costs, beside the same step of another checkout of atomloom.

    python -m benchmarks.speed.trainer --against FOLDER [--only chebyshev|painn] [--rounds 9]

FOLDER is the root of the other checkout. Each has a process of its own, on one thread; they train the same
runs in turns, and a step's time is the processor time of an epoch over its steps, whatever else the machine
does. chebyshev: energies alone, with cached descriptors and a network of some thousand weights, so that what
stands around the network counts most. painn: energies and forces. Writes benchmarks/results/trainer.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.peer import Answering
from benchmarks.common.results import ROOT, Parser, machine, rounded, write_result

EPOCHS = {"chebyshev": 12, "painn": 5}
"""Of one run; the fastest but the first counts, which other work on the machine has held up least."""
STRUCTURES = {"chebyshev": 512, "painn": 64}
MODELS = {
    "chebyshev": {
        "name": "chebyshev",
        "species": ["O", "Si", "Ti", "Sr"],
        "radial_order": 6,
        "angular_order": 2,
        "radial_cutoff": 4.0,
        "angular_cutoff": 3.5,
    },
    "painn": {"name": "painn", "width": 32, "layers": 2, "cutoff": 4.0},
}


# --- a checkout's own process ---------------------------------------------------------------------


def serve() -> None:
    """Answer each line that names a model with the microseconds of processor time of its step."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(_step_us(*_work(line.strip()))), flush=True)


def _work(name: str) -> tuple[Any, Any]:
    """Data and config of a run; energies and forces are drawn."""
    from atomloom.config import parse_config
    from atomloom.graphs.build import build_graphs
    from atomloom.structures.table import StructureTable
    from benchmarks.common.structures import random_crystals

    forces = name == "painn"
    config = parse_config(
        {
            "dataset": {
                "name": "made-up",
                "source": ["none"],
                "target": ["energy", "forces"] if forces else ["energy"],
            },
            "model": MODELS[name],
            "training": {
                "epochs": EPOCHS[name],
                "batch": {"structures": 8},
                "threads": 1,
                "prefetch": 0,
                "device": "cpu",
                "potential": {"cache_features": True},
            },
        }
    )
    structures = random_crystals(STRUCTURES[name], 6)
    table = build_graphs(StructureTable.from_structures(structures), config.graph)
    rng = np.random.default_rng(1)
    energies = rng.normal(size=(len(table), 1))
    drawn = rng.normal(size=(len(table.numbers), 3)) if forces else None
    return _labelled(table, energies, drawn), config


def _labelled(table: Any, energies: np.ndarray, forces: np.ndarray | None) -> Any:
    """Training rows alone, as this checkout or one before it wants forces handed over."""
    from atomloom.data.dataset import LabelledGraphs

    rows = {"train": np.arange(len(table))}
    if forces is None:
        return LabelledGraphs(table, energies, rows)
    if "forces" in {field.name for field in dataclasses.fields(LabelledGraphs)}:
        return LabelledGraphs(table, energies, rows, forces=forces)
    from atomloom.targets import spec_of

    specs = (spec_of("forces", "forces"),)
    return LabelledGraphs(table, energies, rows, arrays={"forces": forces}, specs=specs)


def _step_us(data: Any, config: Any) -> float:
    """Microseconds of processor time of a step, in the fastest epoch."""
    from atomloom.training.trainer import train

    ends: list[float] = []

    def note(line: str) -> None:
        if line.startswith("epoch "):
            ends.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        result = train(data, config, Path(folder), note)
    epochs = [later - earlier for earlier, later in itertools.pairwise(ends)]
    return 1e6 * min(epochs) * result.epochs_run / result.steps


# --- both in turns --------------------------------------------------------------------------------


class Checkout(Answering):
    """A process that trains with the package of a checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = os.pathsep.join([str(root / "workflow"), str(ROOT)])
        super().__init__(
            f"the process of {root}",
            [sys.executable, "-W", "ignore", "-m", "benchmarks.speed.trainer", "--serve"],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
        )

    @property
    def commit(self) -> str:
        """Which it is, where git knows."""
        command = ["git", "-C", str(self.root), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def step_us(self, model: str) -> float:
        """Time of a step of a run."""
        return self.ask(model)


def compare(ours: Checkout, other: Checkout, model: str, rounds: int) -> dict[str, float]:
    """Medians over the rounds, and of each round's ratio: above 1 where ours is faster."""
    found = []
    for turn in range(1 + rounds):  # the first compiles
        first, second = (ours, other) if turn % 2 else (other, ours)
        times = {checkout: checkout.step_us(model) for checkout in (first, second)}
        if turn:
            found.append((times[ours], times[other]))
    ratios = sorted(theirs / own for own, theirs in found)
    return {
        "ours_us": statistics.median(own for own, _ in found),
        "other_us": statistics.median(theirs for _, theirs in found),
        "ratio": statistics.median(ratios),
        "least_ratio": ratios[0],
        "largest_ratio": ratios[-1],
    }


def main() -> None:
    """Measure, print and write."""
    parser = Parser(__doc__, tuple(MODELS))
    parser.add_argument("--against", type=Path, help="root of the other checkout")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve", action="store_true", help="be the process of a checkout")
    options = parser.parse_args()
    if options.serve:
        return serve()
    if options.against is None:
        raise SystemExit("name the root of another checkout by --against")
    ours, other = Checkout(ROOT), Checkout(options.against.resolve())
    result: dict[str, Any] = {"against": other.commit}
    for model in [options.only] if options.only else MODELS:
        result[model] = compare(ours, other, model, options.rounds)
        row = result[model]
        print(
            f"{model:10s} {row['ours_us']:8.0f} us a step, the other {row['other_us']:8.0f}: "
            f"other / ours {row['ratio']:.3f} ({row['least_ratio']:.3f} to "
            f"{row['largest_ratio']:.3f} in {options.rounds} rounds)",
            flush=True,
        )
    ours.close()
    other.close()
    if options.write and not options.only:
        own = machine("torch", "numpy", threads=1, rounds=options.rounds)
        write_result("trainer", {"machine": own, **rounded(result)})


if __name__ == "__main__":
    main()
