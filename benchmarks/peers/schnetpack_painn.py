"""SchNetPack's PaiNN as the peer of `benchmarks/speed/painn.py`, in a Python environment of its own.

Started by that script, as `PYTHON benchmarks/peers/schnetpack_painn.py FOLDER THREADS`. The folder has
`weights.npz` and a `NAME.npz` of arrays for each batch. It reads one request a line, `step NAME`, `evaluate
NAME` or `check NAME`, and answers with wall and processor seconds, and with a file of results for `check`.
"""

from __future__ import annotations

import json
import sys
import time
import typing
from pathlib import Path

import numpy as np
import torch
import torch.utils.data.dataloader

if not hasattr(torch.utils.data.dataloader, "T_co"):
    # SchNetPack 2.1.1 imports this name, which newer versions of torch no longer have.
    torch.utils.data.dataloader.T_co = typing.TypeVar("T_co", covariant=True)

import schnetpack
from schnetpack import atomistic, model, nn, representation


class Peer:
    """One model, several batches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "weights.npz") as file:
            weights = {name: torch.from_numpy(file[name]) for name in file.files}
        rbf = weights["representation.filter_net.weight"].shape[1]
        layers = sum(name.endswith("mu_channel_mix.weight") for name in weights)
        elements, width = weights["representation.embedding.weight"].shape
        cutoff = float(weights["representation.cutoff_fn.cutoff"])
        self.model = model.NeuralNetworkPotential(
            representation=representation.PaiNN(
                n_atom_basis=width,
                n_interactions=layers,
                radial_basis=nn.GaussianRBF(n_rbf=rbf, cutoff=cutoff),
                cutoff_fn=nn.CosineCutoff(cutoff),
                nuclear_embedding=torch.nn.Embedding(elements, width),
            ),
            input_modules=[atomistic.PairwiseDistances()],
            output_modules=[atomistic.Atomwise(n_in=width), atomistic.Forces(energy_key="y")],
        )
        self.model.load_state_dict(
            {name.replace("output.", "output_modules.0."): value for name, value in weights.items()}
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0)
        self.batches: dict[str, dict[str, torch.Tensor]] = {}

    def batch(self, name: str) -> dict[str, torch.Tensor]:
        if name not in self.batches:
            with np.load(self.folder / f"{name}.npz") as file:
                self.batches[name] = {key: torch.from_numpy(file[key]) for key in file.files}
        return self.batches[name]

    def predict(self, name: str) -> dict[str, torch.Tensor]:
        inputs = {key: value for key, value in self.batch(name).items() if key.startswith("_")}
        return self.model(dict(inputs))

    def loss(self, name: str) -> torch.Tensor:
        batch, output = self.batch(name), self.predict(name)
        errors = output["y"] - batch["energy"], output["forces"] - batch["forces"]
        return errors[0].square().mean() + errors[1].square().mean()

    def step(self, name: str) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        self.loss(name).backward()
        self.optimizer.step()

    def evaluate(self, name: str) -> None:
        self.model.eval()
        self.predict(name)

    def check(self, name: str) -> None:
        self.model.train()
        output = self.predict(name)
        found = {"energy": output["y"], "forces": output["forces"]}
        self.optimizer.zero_grad()
        self.loss(name).backward()
        for key, weight in self.model.named_parameters():
            if weight.grad is not None:
                found["grad:" + key.replace("output_modules.0.", "output.")] = weight.grad
        arrays = {key: value.detach().numpy() for key, value in found.items()}
        np.savez(self.folder / f"{name}-found.npz", **arrays)


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    peer = Peer(Path(sys.argv[1]))
    print(
        json.dumps({"schnetpack": schnetpack.__version__, "torch": torch.__version__}), flush=True
    )
    for line in sys.stdin:
        request, name = line.split()
        wall, processor = time.perf_counter(), time.process_time()
        getattr(peer, request)(name)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(json.dumps([wall, processor]), flush=True)


if __name__ == "__main__":
    main()
