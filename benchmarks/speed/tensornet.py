"""Training steps and evaluations of TensorNet with forces, alongside matgl's.

    python -m benchmarks.speed.tensornet [--only NAME] [--width D] [--peer PYTHON]

Molecules of rMD17 and crystals of mlearn (ATOMLOOM_DATA), and a rattled crystal of 108 copper atoms. What is
measured, and how: `benchmarks.common.force_steps`. All variants have matgl's radial functions and read-out
(`variant: matgl`), so that they compute the same. `--peer PYTHON` adds matgl, run by an interpreter that can
import it (Python 3.11: `pip install torch==2.13.0 matgl==4.1.2`). Writes benchmarks/results/tensornet.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from torch import Tensor

from atomloom.config.model import TensorNetConfig
from atomloom.structures.structure import Structure
from benchmarks.common.force_steps import Case, OtherProgram, Ours, measure, parse_options
from benchmarks.common.peer import Peer
from benchmarks.common.results import read_result, write_result

CASES = {
    "ethanol": ("rmd17/ethanol_train_01.xyz.xz", 10),
    "aspirin": ("rmd17/aspirin_train_01.xyz.xz", 10),
    "silicon": ("mlearn/Si_train.extxyz.xz", 5),
    "copper": ("mlearn/Cu_train.extxyz.xz", 2),
    "copper_108": None,
}
"""File and number of frames of each batch; one crystal without a file."""
ELEMENTS = {"H": 1, "C": 6, "O": 8, "Si": 14, "Cu": 29}


def case_of(name: str, cutoff: float, dtype: torch.dtype) -> Case:
    place = CASES[name]
    if place is not None:
        return Case.read(name, *place, cutoff, dtype)
    atoms = bulk("Cu", cubic=True) * (3, 3, 3)
    atoms.rattle(0.05, seed=0)
    crystal = Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    return Case.of(name, [crystal], np.zeros(1), np.zeros((len(atoms), 3)), cutoff, dtype)


def peer_name(name: str) -> str:
    """Name of a weight in matgl."""
    place, _, rest = name.partition(".")
    if place == "output":
        kind, number, end = rest.split(".")
        return f"final_layer.gated.{kind}.{2 * int(number)}.{end}"
    return {"radial_basis.centers": "bond_expansion.rbf.centers"}.get(rest, rest)


def peer_rows(name: str, value: Tensor) -> Tensor:
    """Value of a weight in matgl, whose table of elements has those of the batches alone."""
    return value[list(ELEMENTS.values())] if name.endswith("emb.weight") else value


def peer_arrays(case: Case) -> dict[str, Tensor]:
    """A batch as matgl has it."""
    batch = case.batch
    flat = torch.linalg.det(batch.cell) == 0
    cell = torch.where(flat.view(-1, 1, 1), torch.eye(3), batch.cell)
    fractions = torch.linalg.solve(
        cell.transpose(1, 2)[batch.node_graph], batch.positions.unsqueeze(2)
    )
    kinds = {number: place for place, number in enumerate(ELEMENTS.values())}
    return {
        "kind": torch.tensor([kinds[number] for number in batch.numbers.tolist()]),
        "fractions": fractions.squeeze(2),
        "graph": batch.node_graph,
        "src": batch.src,
        "dst": batch.dst,
        "shift": batch.shift,
        "cell": cell,
    }


class OursAsThePeer(Ours):
    """One way to run our model, with gradients under the peer's names."""

    def check(self, case: Case):
        found = super().check(case)
        for name in list(found.gradient):
            value = peer_rows(name, found.gradient.pop(name))
            found.gradient[peer_name(name)] = value
        return found


def main() -> None:
    options = parse_options(__doc__, CASES, peer="matgl", width=64, rounds=5)
    config = TensorNetConfig(width=options.width, variant="matgl")

    def connect(folder: Path, weights: dict[str, Tensor]) -> OtherProgram:
        given = config.model_dump(include={"width", "layers", "rbf", "cutoff"})
        text = json.dumps({**given, "elements": list(ELEMENTS)})
        (folder / "options.json").write_text(text)
        arrays = {
            peer_name(name): peer_rows(name, value).numpy()
            for name, value in weights.items()
            if not name.endswith("cutoff_fn.cutoff")
        }
        np.savez(folder / "weights.npz", **arrays)
        peer = Peer(options.peer, "matgl_tensornet.py", folder, options.threads)
        return OtherProgram(peer, f"matgl {peer.versions['matgl']}, fp32", folder, peer_arrays)

    found = measure(options, config, case_of, connect, OursAsThePeer)
    results = read_result("tensornet")
    results.setdefault(f"width {options.width}", {}).update(found)
    if options.write:
        write_result("tensornet", results)


if __name__ == "__main__":
    main()
