"""Training steps and evaluations of PaiNN with forces, alongside SchNetPack's.

    python -m benchmarks.speed.painn [--only NAME] [--peer PYTHON]

Batches of real frames where the real data are (ATOMLOOM_DATA): molecules of rMD17, crystals of mlearn. What
is measured, and how: `benchmarks.common.force_steps`. `--peer PYTHON` adds SchNetPack, run by an interpreter
that can import it. Writes benchmarks/results/painn.json.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atomloom.config.model import PaiNNConfig
from benchmarks.common.force_steps import Case, OtherProgram, measure, parse_options
from benchmarks.common.peer import Peer
from benchmarks.common.results import read_result, write_result

CASES = {
    "ethanol": ("rmd17/ethanol_train_01.xyz.xz", 10),
    "aspirin": ("rmd17/aspirin_train_01.xyz.xz", 10),
    "copper": ("mlearn/Cu_train.extxyz.xz", 2),
    "silicon": ("mlearn/Si_train.extxyz.xz", 5),
}
"""File and number of frames of each batch."""


def case_of(name: str, cutoff: float, dtype: torch.dtype) -> Case:
    return Case.read(name, *CASES[name], cutoff, dtype)


def peer_arrays(case: Case) -> dict[str, Tensor]:
    """A batch as SchNetPack has it."""
    batch = case.batch
    edge_graph = batch.node_graph[batch.dst]
    return {
        "_atomic_numbers": batch.numbers,
        "_n_atoms": batch.node_ptr.diff(),
        "_idx_m": batch.node_graph,
        "_idx_i": batch.dst,
        "_idx_j": batch.src,
        "_offsets": torch.einsum("ei,eij->ej", batch.shift, batch.cell[edge_graph]),
        "_positions": batch.positions,
        "_cell": batch.cell,
    }


def main() -> None:
    options = parse_options(__doc__, CASES, peer="schnetpack", width=128, rounds=7)

    def connect(folder: Path, weights: dict[str, Tensor]) -> OtherProgram:
        np.savez(folder / "weights.npz", **{key: value.numpy() for key, value in weights.items()})
        peer = Peer(options.peer, "schnetpack_painn.py", folder, options.threads)
        name = f"SchNetPack {peer.versions['schnetpack']}, fp32"
        return OtherProgram(peer, name, folder, peer_arrays)

    found = measure(options, PaiNNConfig(width=options.width), case_of, connect)
    results = read_result("painn")
    results |= {name: {"width": options.width} | part for name, part in found.items()}
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
