"""Training steps and evaluations of PaiNN with forces, alongside SchNetPack's.

    python -m benchmarks.speed.painn [--only NAME] [--peer PYTHON]

Batches of real frames where the real data are (ATOMLOOM_DATA): molecules of rMD17, crystals of mlearn. What
is measured, and how: `benchmarks.common.force_steps`. `--peer PYTHON` adds SchNetPack, run by an interpreter
that can import it. Writes benchmarks/results/painn.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atomloom.config.model import PaiNNConfig
from atomloom.models import build_model
from benchmarks.common.force_steps import Case, OtherProgram, Ours, Variant, compare, show
from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, machine, read_result, write_result

CASES = {
    "ethanol": ("rmd17/ethanol_train_01.xyz.xz", 10),
    "aspirin": ("rmd17/aspirin_train_01.xyz.xz", 10),
    "copper": ("mlearn/Cu_train.extxyz.xz", 2),
    "silicon": ("mlearn/Si_train.extxyz.xz", 5),
}
"""File and number of frames of each batch."""


class SchNetPack(OtherProgram):
    """SchNetPack's model."""

    def __init__(
        self, python: Path, folder: Path, weights: dict[str, Tensor], threads: int
    ) -> None:
        np.savez(folder / "weights.npz", **{key: value.numpy() for key, value in weights.items()})
        peer = Peer(python, "schnetpack_painn.py", folder, threads)
        super().__init__(peer, f"SchNetPack {peer.versions['schnetpack']}, fp32", folder)

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
        variants: list[Variant] = []
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
            case = Case.read(name, *CASES[name], config.cutoff, torch.float32)
            true = exact.check(Case.read(name, *CASES[name], config.cutoff, torch.float64))
            if peer is not None:
                peer.learn(case)
            rows = compare(case, variants, true, options.rounds)
            show(
                f"{name}: " + ", ".join(f"{value} {key}" for key, value in case.shape.items()), rows
            )
            results[name] = case.shape | {
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
