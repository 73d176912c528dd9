"""CHGNet with its published weights in the table of peers: see `serving`."""

from __future__ import annotations

import torch
from chgnet.model import CHGNet
from chgnet.model.dynamics import CHGNetCalculator
from pymatgen.io.ase import AseAtomsAdaptor
from serving import Potential, boxed, serve


class Peer(Potential):
    def build(self):
        return CHGNet.load(verbose=False, use_device="cpu")

    def collate(self, frames):
        structures = [AseAtomsAdaptor.get_structure(atoms) for atoms in boxed(frames)]
        counts = torch.tensor([len(atoms) for atoms in frames])
        return [self.model.graph_converter(one) for one in structures], counts

    def predict(self, batch, training):
        graphs, counts = batch
        found = self.model(graphs, task="ef")
        return found["e"] * counts, torch.cat(found["f"])

    def calculator(self):
        return CHGNetCalculator(self.model, use_device="cpu")


serve(Peer, "chgnet")
