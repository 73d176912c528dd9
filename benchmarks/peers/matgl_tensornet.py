"""matgl's TensorNet as the peer of `benchmarks/speed/tensornet.py`, in a Python environment of its own.

Started by that script, as `PYTHON benchmarks/peers/matgl_tensornet.py FOLDER THREADS`. The folder has
`weights.npz` and a `NAME.npz` of arrays for each batch. It reads one request a line, `step NAME`, `evaluate
NAME` or `check NAME`, and answers with wall and processor seconds, and with a file of results for `check`.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from matgl.apps.pes import Potential
from matgl.models import TensorNet
from torch_geometric.data import Batch, Data


class Peer:
    """One model, several batches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "weights.npz") as file:
            content = {name: torch.from_numpy(file[name]) for name in file.files}
        options = json.loads((folder / "options.json").read_text())
        network = TensorNet(
            element_types=tuple(options["elements"]),
            units=options["width"],
            nblocks=options["layers"],
            num_rbf=options["rbf"],
            cutoff=options["cutoff"],
            is_intensive=False,
        )
        missing = network.load_state_dict(content, strict=False)
        assert not missing.missing_keys
        assert not missing.unexpected_keys
        self.model = Potential(network, calc_stresses=False)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=0.0)
        self.batches: dict[str, tuple] = {}

    def batch(self, name: str) -> tuple:
        if name not in self.batches:
            with np.load(self.folder / f"{name}.npz") as file:
                own = {key: torch.from_numpy(file[key]) for key in file.files}
            graphs = []
            for place in range(len(own["cell"])):
                atoms = torch.nonzero(own["graph"] == place).flatten()
                edges = torch.nonzero(own["graph"][own["dst"]] == place).flatten()
                first = int(atoms[0])
                graphs.append(
                    Data(
                        node_type=own["kind"][atoms],
                        frac_coords=own["fractions"][atoms],
                        edge_index=torch.stack((own["dst"][edges], own["src"][edges])) - first,
                        pbc_offset=own["shift"][edges],
                        num_nodes=len(atoms),
                    )
                )
            self.batches[name] = (
                Batch.from_data_list(graphs),
                own["cell"],
                own["energy"],
                own["forces"],
            )
        return self.batches[name]

    def predict(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        graph, cell, *_ = self.batch(name)
        energy, forces, *_ = self.model(graph, cell)
        return energy.view(-1), forces

    def loss(self, name: str) -> torch.Tensor:
        _, _, energy, forces = self.batch(name)
        found = self.predict(name)
        return (found[0] - energy).square().mean() + (found[1] - forces).square().mean()

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
        energy, forces = self.predict(name)
        found = {"energy": energy, "forces": forces}
        self.optimizer.zero_grad()
        self.loss(name).backward()
        for key, weight in self.model.model.named_parameters():
            if weight.grad is not None:
                found[f"grad:{key}"] = weight.grad
        arrays = {key: value.detach().numpy() for key, value in found.items()}
        np.savez(self.folder / f"{name}-found.npz", **arrays)


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    peer = Peer(Path(sys.argv[1]))
    print(json.dumps({"matgl": version("matgl"), "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        request, name = line.split()
        wall, processor = time.perf_counter(), time.process_time()
        getattr(peer, request)(name)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(json.dumps([wall, processor]), flush=True)


if __name__ == "__main__":
    main()
