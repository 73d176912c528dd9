"""What the scripts of one table of peers share: frames read, steps taken and timed, requests answered.

A script is started as `PYTHON SCRIPT FOLDER`. FOLDER has `options.json`, with the `model` that is wanted and its cutoff, and
`CASE.extxyz` with the frames of each case; where frames have no labels they are zero. It reads one request a line,
`step CASE`, `evaluate CASE` or `calculate CASE`, and answers with wall and processor seconds. It knows nothing of atomloom.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read


class Program:
    """A model of another program, on batches that it makes by its own means.

    Subclasses have `build`, `collate`, `loss` and `predict`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options: dict[str, Any] = json.loads((folder / "options.json").read_text())
        torch.manual_seed(0)
        self.model = self.build()
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.parameters = sum(weight.numel() for weight in trained)
        self.optimizer = torch.optim.Adam(trained, lr=0.0)
        self.batches: dict[str, tuple[Any, ...]] = {}

    def frames(self, case: str) -> list[Atoms]:
        """Frames of a case."""
        return read(self.folder / f"{case}.extxyz", ":")

    def batch(self, case: str) -> tuple[Any, ...]:
        """Batch of a case with its labels, made once."""
        if case not in self.batches:
            frames = self.frames(case)
            self.batches[case] = (self.collate(frames), *self.labels(frames))
        return self.batches[case]

    def step(self, case: str) -> None:
        """One step of the optimiser."""
        batch = self.batch(case)
        self.model.train()
        self.optimizer.zero_grad()
        self.loss(*batch).backward()
        self.optimizer.step()

    def evaluate(self, case: str) -> None:
        """Predictions for the batch."""
        batch = self.batch(case)[0]
        self.model.eval()
        self.predict(batch, training=False)

    def build(self) -> torch.nn.Module:
        """The model."""
        raise NotImplementedError

    def collate(self, frames: list[Atoms]) -> Any:
        """One batch of frames."""
        raise NotImplementedError

    def labels(self, frames: list[Atoms]) -> tuple[torch.Tensor, ...]:
        """What is to be predicted."""
        raise NotImplementedError

    def loss(self, batch: Any, *labels: torch.Tensor) -> torch.Tensor:
        """Mean squared error."""
        raise NotImplementedError

    def predict(self, batch: Any, training: bool) -> Any:
        """Predictions."""
        raise NotImplementedError


class Potential(Program):
    """A potential: `predict` gives energies [B] and forces [N, 3]; `calculator` one of ASE."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.made: Any = None

    def calculator(self) -> Any:
        """The program's calculator."""
        raise NotImplementedError

    def labels(self, frames: list[Atoms]) -> tuple[torch.Tensor, ...]:
        energy = np.array([atoms.info["REF_energy"] for atoms in frames])
        forces = np.concatenate([atoms.arrays["REF_forces"] for atoms in frames])
        return torch.tensor(energy, dtype=torch.float32), torch.tensor(forces, dtype=torch.float32)

    def loss(self, batch: Any, *labels: torch.Tensor) -> torch.Tensor:
        energy, forces = self.predict(batch, training=True)
        return (energy - labels[0]).square().mean() + (forces - labels[1]).square().mean()

    def calculate(self, case: str) -> None:
        """Energy and forces of one structure, neighbours included."""
        if self.made is None:
            self.model.eval()
            self.made = self.calculator()
        (atoms,) = self.frames(case)
        atoms.calc = self.made
        self.made.reset()
        atoms.get_potential_energy()
        atoms.get_forces()


class Property(Program):
    """A model of one number per structure: `predict` gives [B]."""

    def labels(self, frames: list[Atoms]) -> tuple[torch.Tensor, ...]:
        return (torch.tensor([atoms.info["REF_target"] for atoms in frames], dtype=torch.float32),)

    def loss(self, batch: Any, *labels: torch.Tensor) -> torch.Tensor:
        return (self.predict(batch, training=True) - labels[0]).square().mean()

    def evaluate(self, case: str) -> None:
        with torch.no_grad():
            super().evaluate(case)


def boxed(frames: list[Atoms]) -> list[Atoms]:
    """The frames, molecules in a cell of 30 A: for programs that know only crystals."""
    found = [atoms.copy() for atoms in frames]
    for atoms in found:
        if atoms.cell.rank < 3:
            atoms.set_cell([30.0] * 3)
            atoms.center()
            atoms.pbc = True
    return found


def serve(make: Any, *packages: str) -> None:
    """Answer requests until there are no more.

    Args:
        make: gives the program, from the folder.
        packages: whose versions are told, besides torch's.
    """
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # programs greet
    torch.set_num_threads(1)
    program = make(Path(sys.argv[1]))

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    versions = {name: version(name) for name in (*packages, "torch")}
    answer({"versions": versions, "parameters": program.parameters})
    for line in sys.stdin:
        request, case = line.split()
        if request != "calculate":
            program.batch(case)
        wall, processor = time.perf_counter(), time.process_time()
        getattr(program, request)(case)
        answer([time.perf_counter() - wall, time.process_time() - processor])
