"""ALIGNN without DGL in the table of peers: see `serving`. It takes edges and their pairs as they are given."""

from __future__ import annotations

import numpy as np
import torch
from alignn.models.alignn_atomwise_pure import ALIGNNAtomWisePure, ALIGNNAtomWisePureConfig
from alignn.torch_graph_builder import TorchGraph
from serving import Property, serve


class Peer(Property):
    def build(self):
        return ALIGNNAtomWisePure(
            ALIGNNAtomWisePureConfig(
                name="alignn_atomwise_pure",
                calculate_gradient=False,
                energy_mult_natoms=False,
                use_penalty=False,
                atom_input_features=92,
                **self.options["size"],
            )
        )

    def collate(self, frames):
        with np.load(self.folder / "graph.npz") as file:
            given = {name: torch.from_numpy(file[name]) for name in file.files}
        graph = TorchGraph(
            len(given["features"]),
            given["src"],
            given["dst"],
            {"atom_features": given["features"].float()},
            {"r": given["r"].float()},
            given["atoms"],
            given["edges"],
        )
        line = TorchGraph(
            len(given["src"]),
            given["line_src"],
            given["line_dst"],
            {},
            {"h": given["cosine"].float()},
            given["edges"],
            given["pairs"],
        )
        return graph, line, torch.eye(3).expand(len(frames), 3, 3)

    def predict(self, batch, training):
        return self.model(batch)["out"].view(-1)


serve(Peer, "alignn")
