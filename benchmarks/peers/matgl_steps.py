"""matgl's TensorNet and MEGNet in the table of peers: see `serving`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from matgl.apps.pes import Potential as MatGLPotential
from matgl.ext.ase import Atoms2Graph, PESCalculator
from matgl.models import MEGNet, TensorNet
from serving import Potential, Property, serve
from torch_geometric.data import Batch


def graphs(program, frames):
    """Batch of the frames, and their cells."""
    convert = Atoms2Graph(tuple(program.options["symbols"]), program.options["cutoff"])
    found = [convert.get_graph(atoms) for atoms in frames]
    return Batch.from_data_list([one[0] for one in found]), torch.stack(
        [one[1].view(3, 3) for one in found]
    )


class Energies(Potential):
    def build(self):
        network = TensorNet(
            element_types=tuple(self.options["symbols"]),
            cutoff=self.options["cutoff"],
            is_intensive=False,
        )
        return MatGLPotential(network, calc_stresses=False)

    def collate(self, frames):
        return graphs(self, frames)

    def predict(self, batch, training):
        energy, forces, *_ = self.model(*batch)
        return energy.view(-1), forces

    def calculator(self):
        return PESCalculator(self.model, stress_unit="eV/A3")


class Numbers(Property):
    def build(self):
        made = {"tensornet": TensorNet, "megnet": MEGNet}[self.options["model"]]
        given = {"element_types": tuple(self.options["symbols"]), "cutoff": self.options["cutoff"]}
        return made(**given, **self.options["size"])

    def collate(self, frames):
        batch, cells = graphs(self, frames)
        own = cells[batch.batch]
        batch.pos = torch.einsum("ni,nij->nj", batch.frac_coords, own)
        batch.pbc_offshift = torch.einsum(
            "ei,eij->ej", batch.pbc_offset.float(), own[batch.edge_index[0]]
        )
        state = torch.zeros(len(frames), 2)
        return batch, state

    def predict(self, batch, training):
        return self.model(g=batch[0], state_attr=batch[1]).view(-1)


kind = json.loads((Path(sys.argv[1]) / "options.json").read_text())["kind"]
serve({"potential": Energies, "property": Numbers}[kind], "matgl", "torch-geometric")
