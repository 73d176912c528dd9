"""Training steps and evaluations of TensorNet with forces, alongside matgl's.

    python -m benchmarks.speed.tensornet [--only NAME] [--width D] [--peer PYTHON]

Molecules of rMD17 and crystals of mlearn (ATOMLOOM_DATA), and a rattled crystal of 108 copper atoms. What is
measured, and how: `benchmarks.common.force_steps`. All variants have matgl's radial functions and read-out
(`variant: matgl`), so that they compute the same. `--peer PYTHON` adds matgl, run by an interpreter that can
import it (Python 3.11: `pip install torch==2.13.0 matgl==4.1.2`). Writes benchmarks/results/tensornet.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from torch import Tensor

from atomloom.config.model import TensorNetConfig
from atomloom.models import build_model
from atomloom.structures.structure import Structure
from benchmarks.common.force_steps import Case, OtherProgram, Ours, Variant, compare, show
from benchmarks.common.peer import Peer
from benchmarks.common.results import Parser, machine, read_result, write_result

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


class Matgl(OtherProgram):
    """matgl's model."""

    def __init__(
        self,
        python: Path,
        folder: Path,
        weights: dict[str, Tensor],
        config: TensorNetConfig,
        threads: int,
    ) -> None:
        options = config.model_dump(include={"width", "layers", "rbf", "cutoff"})
        text = json.dumps({**options, "elements": list(ELEMENTS)})
        (folder / "options.json").write_text(text)
        given = {
            peer_name(name): peer_rows(name, value).numpy()
            for name, value in weights.items()
            if not name.endswith("cutoff_fn.cutoff")
        }
        np.savez(folder / "weights.npz", **given)
        peer = Peer(python, "matgl_tensornet.py", folder, threads)
        super().__init__(peer, f"matgl {peer.versions['matgl']}, fp32", folder)

    def learn(self, case: Case) -> None:
        """Hand a batch over."""
        batch = case.batch
        flat = torch.linalg.det(batch.cell) == 0
        cell = torch.where(flat.view(-1, 1, 1), torch.eye(3), batch.cell)
        fractions = torch.linalg.solve(
            cell.transpose(1, 2)[batch.node_graph], batch.positions.unsqueeze(2)
        )
        kinds = {number: place for place, number in enumerate(ELEMENTS.values())}
        arrays = {
            "kind": torch.tensor([kinds[number] for number in batch.numbers.tolist()]),
            "fractions": fractions.squeeze(2),
            "graph": batch.node_graph,
            "src": batch.src,
            "dst": batch.dst,
            "shift": batch.shift,
            "cell": cell,
            "energy": case.energy,
            "forces": case.forces,
        }
        np.savez(self.folder / f"{case.name}.npz", **{k: v.numpy() for k, v in arrays.items()})


class OursAsThePeer(Ours):
    """One way to run our model, with gradients under the peer's names."""

    def check(self, case: Case):
        found = super().check(case)
        for name in list(found.gradient):
            value = peer_rows(name, found.gradient.pop(name))
            found.gradient[peer_name(name)] = value
        return found


def model(config: TensorNetConfig, weights: dict[str, Tensor] | None = None) -> torch.nn.Module:
    torch.manual_seed(1)
    built = build_model(config, 1)
    if weights is not None:
        built.load_state_dict(weights)
    return built


def main() -> None:
    parser = Parser(__doc__, parts=list(CASES), peer="matgl")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = TensorNetConfig(width=options.width, variant="matgl")
    weights = model(config).state_dict()
    exact = OursAsThePeer("float64", model(config, weights).double())
    results = read_result("tensornet")
    with tempfile.TemporaryDirectory() as scratch:
        variants: list[Variant] = []
        peer = None
        if options.peer:
            peer = Matgl(options.peer, Path(scratch), weights, config, options.threads)
            variants.append(peer)
        variants += [
            OursAsThePeer("plain operations, fp32", model(config, weights), plain=True),
            OursAsThePeer("atomloom, fp32", model(config, weights)),
            OursAsThePeer("atomloom, bf16-mixed", model(config, weights), bf16=True),
        ]
        for name in [options.only] if options.only else CASES:
            case = case_of(name, config.cutoff, torch.float32)
            true = exact.check(case_of(name, config.cutoff, torch.float64))
            if peer is not None:
                peer.learn(case)
            rows = compare(case, variants, true, options.rounds)
            show(f"{name}: " + ", ".join(f"{v} {key}" for key, v in case.shape.items()), rows)
            results.setdefault(f"width {options.width}", {})[name] = case.shape | {
                "machine": machine("torch", threads=options.threads),
                "peer": peer.peer.versions if peer is not None else None,
                "rows": rows,
            }
        if peer is not None:
            peer.peer.close()
    if options.write:
        write_result("tensornet", results)


if __name__ == "__main__":
    main()
