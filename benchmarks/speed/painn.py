"""Training steps and evaluations of PaiNN with forces, alongside SchNetPack's.

    python -m benchmarks.speed.painn [--only NAME] [--peer PYTHON]

Batches of real frames where the real data are (ATOMLOOM_DATA): molecules of rMD17, crystals of mlearn. A
step is forward, forces, loss of energies and forces, backward and Adam (ours as our training takes it:
fused, and derivatives by weights alone); an evaluation is energies and forces. Every variant has the same
weights and batches and takes its turn in every round; alongside its speed stands the error of its energies,
forces and loss gradient against float64. `--peer PYTHON` adds SchNetPack, run by an interpreter that can
import it. Speeds are ratios of processor time, which other work on the machine does not enter; wall time
stands alongside them. Writes benchmarks/results/painn.json.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atomloom.config import GraphSpec
from atomloom.config.model import PaiNNConfig
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.models import build_model
from atomloom.models.common import passes
from atomloom.models.derivatives import PotentialOutput, evaluate_potential
from atomloom.readers import read
from atomloom.structures.table import StructureTable
from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, data_path, machine, read_result, write_result
from benchmarks.common.timing import Seconds, clock, in_turns, processor
from benchmarks.common.training_steps import relative

CASES = {
    "ethanol": ("rmd17/ethanol_train_01.xyz.xz", 10),
    "aspirin": ("rmd17/aspirin_train_01.xyz.xz", 10),
    "copper": ("mlearn/Cu_train.extxyz.xz", 2),
    "silicon": ("mlearn/Si_train.extxyz.xz", 5),
}
"""File and number of frames of each batch."""
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
    def read(cls, name: str, cutoff: float, dtype: torch.dtype) -> Case:
        file, count = CASES[name]
        frames = read(data_path(file))[:count]
        if np.linalg.norm(frames[0].cell, axis=1).min() > FAKE_CELL:
            free = {"cell": np.zeros((3, 3)), "pbc": np.zeros(3, dtype=bool)}
            frames = [replace(frame, **free) for frame in frames]
        spec = GraphSpec(neighbors="radius", cutoff=cutoff)
        table = build_graphs(StructureTable.from_structures(frames), spec)
        rows = np.arange(len(table))
        energy = np.array([float(frame.properties["energy"]) for frame in frames])
        forces = np.concatenate([frame.properties["forces"] for frame in frames])
        return cls(
            name,
            GraphLoader(table, rows, dtype=dtype).slice(rows),
            torch.tensor(energy - energy.mean(), dtype=dtype),
            torch.tensor(forces, dtype=dtype),
        )


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


class SchNetPack:
    """SchNetPack's model in another interpreter."""

    def __init__(
        self, python: Path, folder: Path, weights: dict[str, Tensor], threads: int
    ) -> None:
        np.savez(folder / "weights.npz", **{key: value.numpy() for key, value in weights.items()})
        self.folder = folder
        self.peer = Peer(python, "schnetpack_painn.py", folder, threads)
        self.name = f"SchNetPack {self.peer.versions['schnetpack']}, fp32"

    def learn(self, case: Case) -> None:
        """Hand a batch over."""
        batch = case.batch
        edge_graph = batch.node_graph[batch.dst]
        arrays = {
            "_atomic_numbers": batch.numbers,
            "_n_atoms": batch.node_ptr.diff(),
            "_idx_m": batch.node_graph,
            "_idx_i": batch.dst,
            "_idx_j": batch.src,
            "_offsets": torch.einsum("ei,eij->ej", batch.shift, batch.cell[edge_graph]),
            "_positions": batch.positions,
            "_cell": batch.cell,
            "energy": case.energy,
            "forces": case.forces,
        }
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


def compare(case: Case, variants: list[Ours | SchNetPack], true: Found, rounds: int) -> list[dict]:
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


def model(config: PaiNNConfig, weights: dict[str, Tensor] | None = None) -> torch.nn.Module:
    torch.manual_seed(1)
    built = build_model(config, 1)
    if weights is not None:
        built.load_state_dict(weights)
    return built


def main() -> None:
    parser = Parser(__doc__, parts=list(CASES), peer="schnetpack")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = PaiNNConfig(width=options.width)
    weights = model(config).state_dict()
    exact = Ours("float64", model(config, weights).double())
    results = read_result("painn")
    with tempfile.TemporaryDirectory() as scratch:
        variants: list[Ours | SchNetPack] = []
        peer = None
        if options.peer:
            peer = SchNetPack(options.peer, Path(scratch), weights, options.threads)
            variants.append(peer)
        variants += [
            Ours("plain operations, fp32", model(config, weights), plain=True),
            Ours("atomloom, fp32", model(config, weights)),
            Ours("atomloom, bf16-mixed", model(config, weights), bf16=True),
        ]
        for name in [options.only] if options.only else CASES:
            case = Case.read(name, config.cutoff, torch.float32)
            true = exact.check(Case.read(name, config.cutoff, torch.float64))
            if peer is not None:
                peer.learn(case)
            rows = compare(case, variants, true, options.rounds)
            shape = {
                "structures": case.batch.size,
                "atoms": len(case.batch.numbers),
                "edges": len(case.batch.src),
            }
            show(f"{name}: " + ", ".join(f"{value} {key}" for key, value in shape.items()), rows)
            results[name] = shape | {
                "width": options.width,
                "machine": machine("torch", threads=options.threads),
                "peer": peer.peer.versions if peer is not None else None,
                "rows": rows,
            }
        if peer is not None:
            peer.peer.close()
    if options.write:
        write_result("painn", results)
    speeds = {
        name: next(r for r in part["rows"] if r["variant"] == "atomloom, fp32")["step_speedup"]
        for name, part in results.items()
    }
    print(
        "\nour fp32 step against the first row:",
        ", ".join(f"{name} {speed:.1f}x" for name, speed in speeds.items()),
    )


if __name__ == "__main__":
    main()
