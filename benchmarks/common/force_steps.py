"""Training steps with forces and evaluations of a potential in variants, alongside another program's.

A step is forward, forces, loss of energies and forces, backward and Adam (ours as our training takes it:
fused, and derivatives by weights alone); an evaluation is energies and forces. Every variant has the same
weights and batches and takes its turn in every round; alongside its speed stands the error of its energies,
forces and loss gradient against float64. Speeds are ratios of processor time, which other work on the machine
does not enter; wall time stands alongside them.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from atomloom.config import GraphSpec
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.models import build_model
from atomloom.models.common import passes
from atomloom.models.derivatives import PotentialOutput, evaluate_potential
from atomloom.readers import read
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, data_path, machine
from benchmarks.common.timing import Seconds, clock, in_turns, processor
from benchmarks.common.training_steps import relative

FAKE_CELL = 40.0
"""A; crystals of these sets are smaller: a cubic cell so long is a molecule's."""


@dataclass(frozen=True)
class Case:
    """One batch with what it is to be fitted to."""

    name: str
    batch: GraphBatch
    energy: Tensor
    """[B], eV, less the mean."""
    forces: Tensor
    """[N, 3], eV/A."""

    @classmethod
    def read(cls, name: str, file: str, count: int, cutoff: float, dtype: torch.dtype) -> Case:
        """First frames of a file of the data sets."""
        frames = read(data_path(file))[:count]
        if np.linalg.norm(frames[0].cell, axis=1).min() > FAKE_CELL:
            free = {"cell": np.zeros((3, 3)), "pbc": np.zeros(3, dtype=bool)}
            frames = [replace(frame, **free) for frame in frames]
        energy = np.array([float(frame.properties["energy"]) for frame in frames])
        forces = np.concatenate([frame.properties["forces"] for frame in frames])
        return cls.of(name, frames, energy - energy.mean(), forces, cutoff, dtype)

    @classmethod
    def of(
        cls,
        name: str,
        frames: list[Structure],
        energy: np.ndarray,
        forces: np.ndarray,
        cutoff: float,
        dtype: torch.dtype,
    ) -> Case:
        """Batch of the frames with their labels."""
        spec = GraphSpec(neighbors="radius", cutoff=cutoff)
        table = build_graphs(StructureTable.from_structures(frames), spec)
        rows = np.arange(len(table))
        return cls(
            name,
            GraphLoader(table, rows, dtype=dtype).slice(rows),
            torch.tensor(energy, dtype=dtype),
            torch.tensor(forces, dtype=dtype),
        )

    @property
    def shape(self) -> dict[str, int]:
        """Numbers of structures, atoms and edges."""
        return {
            "structures": self.batch.size,
            "atoms": len(self.batch.numbers),
            "edges": len(self.batch.src),
        }


@dataclass(frozen=True)
class Found:
    """Energies, forces and gradients that a variant makes of a batch."""

    energy: Tensor
    forces: Tensor
    gradient: dict[str, Tensor]


@dataclass
class Ours:
    """One way to run our model."""

    name: str
    model: torch.nn.Module
    bf16: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0, fused=True)

    def predict(self, case: Case, training: bool) -> PotentialOutput:
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16),
            _passes(not self.plain),
        ):
            return evaluate_potential(self.model, case.batch, create_graph=training)

    def loss(self, case: Case) -> Tensor:
        found = self.predict(case, training=True)
        errors = found.energy - case.energy, found.forces - case.forces
        return errors[0].square().mean() + errors[1].square().mean()

    def step(self, case: Case) -> None:
        self.optimizer.zero_grad()
        self.loss(case).backward(inputs=list(self.model.parameters()))
        self.optimizer.step()

    def evaluate(self, case: Case) -> None:
        self.predict(case, training=False)

    def check(self, case: Case) -> Found:
        output = self.predict(case, training=False)
        self.optimizer.zero_grad()
        self.loss(case).backward()
        named = self.model.named_parameters()
        gradient = {name: weight.grad for name, weight in named if weight.grad is not None}
        return Found(output.energy, output.forces, gradient)


@contextmanager
def _passes(allowed: bool):
    """With `allowed` False, the plain operations that serve where there are no compiled passes."""
    chosen = passes.by_passes
    if not allowed:
        passes.by_passes = lambda vectors: False
    try:
        yield
    finally:
        passes.by_passes = chosen


class OtherProgram:
    """A potential of another program, in its own interpreter.

    Args:
        peer: the running script, which answers `step NAME`, `evaluate NAME` and `check NAME`.
        name: of the variant.
        folder: where the script reads batches and writes what it found.
        arrays: what the script is given of a batch.
    """

    def __init__(
        self, peer: Peer, name: str, folder: Path, arrays: Callable[[Case], dict[str, Tensor]]
    ) -> None:
        self.peer, self.name, self.folder, self.arrays = peer, name, folder, arrays

    def learn(self, case: Case) -> None:
        """Hand a batch over, with what it is to be fitted to."""
        arrays = self.arrays(case) | {"energy": case.energy, "forces": case.forces}
        np.savez(self.folder / f"{case.name}.npz", **{k: v.numpy() for k, v in arrays.items()})

    def step(self, case: Case) -> Seconds:
        """Time of one optimiser step."""
        return Seconds(*self.peer.ask(f"step {case.name}"))

    def evaluate(self, case: Case) -> Seconds:
        """Time of energies and forces."""
        return Seconds(*self.peer.ask(f"evaluate {case.name}"))

    def check(self, case: Case) -> Found:
        """Energies, forces and gradients."""
        self.peer.ask(f"check {case.name}")
        with np.load(self.folder / f"{case.name}-found.npz") as file:
            found = {key: torch.from_numpy(file[key]) for key in file.files}
        gradient = {key[5:]: value for key, value in found.items() if key.startswith("grad:")}
        return Found(found["energy"], found["forces"], gradient)


class Variant(Protocol):
    """What is compared."""

    name: str

    def step(self, case: Case) -> Seconds | None: ...
    def evaluate(self, case: Case) -> Seconds | None: ...
    def check(self, case: Case) -> Found: ...


def errors(found: Found, true: Found) -> dict[str, float]:
    """Relative, each of a whole vector."""
    names = sorted(true.gradient.keys() & found.gradient.keys())
    gradients = [
        torch.cat([part.gradient[name].double().flatten() for name in names])
        for part in (found, true)
    ]
    return {
        "energy_error": relative(found.energy, true.energy),
        "force_error": relative(found.forces, true.forces),
        "gradient_error": relative(*gradients),
    }


def compare(case: Case, variants: Sequence[Variant], true: Found, rounds: int) -> list[dict]:
    """Errors against `true`, then times: every variant once a round, in turns."""
    rows = [{"variant": each.name} | errors(each.check(case), true) for each in variants]
    calls = {
        (name, each.name): partial(getattr(each, name), case)
        for name in ("step", "evaluate")
        for each in variants
    }
    times = in_turns(calls, rounds)
    for row in rows:
        for name in ("step", "evaluate"):
            own = times[name, row["variant"]]
            row[f"{name}_wall_ms"], row[f"{name}_ms"] = 1e3 * clock(own), 1e3 * processor(own)
            for kind in ("", "_wall"):
                first = rows[0][f"{name}{kind}_ms"]
                row[f"{name}{kind}_speedup"] = first / row[f"{name}{kind}_ms"]
    return rows


def show(title: str, rows: list[dict]) -> None:
    print(f"\n{title}")
    print(f"{'variant':32s} {'step ms':>9s} {'speed':>6s} {'(wall)':>7s} {'eval ms':>9s} {'speed':>6s} "
          f"{'(wall)':>7s} {'energy':>8s} {'forces':>8s} {'gradient':>8s}")  # fmt: skip
    for row in rows:
        print(
            f"{row['variant']:32s} "
            + " ".join(
                f"{row[f'{request}_ms']:9.1f} {row[f'{request}_speedup']:6.2f} "
                f"{row[f'{request}_wall_speedup']:7.2f}"
                for request in ("step", "evaluate")
            )
            + f" {row['energy_error']:8.0e} {row['force_error']:8.0e} {row['gradient_error']:8.0e}"
        )


# --- a benchmark ----------------------------------------------------------------------------------


def parse_options(
    doc: str | None, cases: Iterable[str], peer: str, width: int, rounds: int
) -> Namespace:
    """Options of a benchmark of one network on these cases; width and rounds unless they are given.

    `peer` is what the interpreter `--peer` has to have. `names` are the cases that are asked for.
    """
    names = list(cases)
    parser = Parser(doc, parts=names, peer=peer)
    parser.add_argument("--width", type=int, default=width)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.names = [options.only] if options.only else names
    return options


def measure(
    options: Namespace,
    config: Any,
    read_case: Callable[[str, float, torch.dtype], Case],
    connect: Callable[[Path, dict[str, Tensor]], OtherProgram],
    ours: type[Ours] = Ours,
) -> dict[str, dict]:
    """Compare the variants on every case that is asked for, and show it: what a result file has of each.

    Args:
        options: by `parse_options`.
        config: the section `model` of a config.
        read_case: gives a case by its name, cutoff and type of numbers.
        connect: starts the other program, where there is `--peer`: from a folder and the weights.
        ours: kind of our variants.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    weights = build_model(config, 1).state_dict()

    def model() -> torch.nn.Module:
        built = build_model(config, 1)
        built.load_state_dict(weights)
        return built

    exact = ours("float64", model().double())
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        other = connect(Path(scratch), weights) if options.peer else None
        variants: list[Variant] = [] if other is None else [other]
        variants += [
            ours("plain operations, fp32", model(), plain=True),
            ours("atomloom, fp32", model()),
            ours("atomloom, bf16-mixed", model(), bf16=True),
        ]
        for name in options.names:
            case = read_case(name, config.cutoff, torch.float32)
            true = exact.check(read_case(name, config.cutoff, torch.float64))
            if other is not None:
                other.learn(case)
            rows = compare(case, variants, true, options.rounds)
            show(f"{name}: " + ", ".join(f"{v} {key}" for key, v in case.shape.items()), rows)
            results[name] = case.shape | {
                "machine": machine("torch", threads=options.threads),
                "peer": other.peer.versions if other is not None else None,
                "rows": rows,
            }
        if other is not None:
            other.peer.close()
    return results
