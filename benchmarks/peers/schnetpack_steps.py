"""SchNetPack's PaiNN in the table of peers: see `serving`."""

from __future__ import annotations

import typing

import torch
import torch.utils.data.dataloader

if not hasattr(torch.utils.data.dataloader, "T_co"):
    # SchNetPack 2.1.1 imports this name, which newer versions of torch no longer have.
    torch.utils.data.dataloader.T_co = typing.TypeVar("T_co", covariant=True)

from ase.neighborlist import neighbor_list
from schnetpack import atomistic, interfaces, model, nn, representation, transform
from serving import Potential, serve


class Peer(Potential):
    def build(self):
        cutoff, width = self.options["cutoff"], self.options["size"]["width"]
        return model.NeuralNetworkPotential(
            representation=representation.PaiNN(
                n_atom_basis=width,
                n_interactions=3,
                radial_basis=nn.GaussianRBF(n_rbf=20, cutoff=cutoff),
                cutoff_fn=nn.CosineCutoff(cutoff),
            ),
            input_modules=[atomistic.PairwiseDistances()],
            output_modules=[
                atomistic.Atomwise(n_in=width, output_key="energy"),
                atomistic.Forces(),
            ],
        )

    def collate(self, frames):
        parts = []
        first = 0
        for place, atoms in enumerate(frames):
            i, j, shift = neighbor_list("ijS", atoms, self.options["cutoff"])
            parts.append(
                {
                    "_atomic_numbers": torch.tensor(atoms.numbers),
                    "_n_atoms": torch.tensor([len(atoms)]),
                    "_idx_m": torch.full((len(atoms),), place),
                    "_idx_i": torch.tensor(i) + first,
                    "_idx_j": torch.tensor(j) + first,
                    "_offsets": torch.tensor(shift @ atoms.cell.array, dtype=torch.float32),
                    "_positions": torch.tensor(atoms.positions, dtype=torch.float32),
                    "_cell": torch.tensor(atoms.cell.array, dtype=torch.float32)[None],
                }
            )
            first += len(atoms)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def predict(self, batch, training):
        found = self.model(dict(batch))
        return found["energy"], found["forces"]

    def calculator(self):
        own = self.model

        class Calculator(interfaces.SpkCalculator):
            """With a model that is there: its file would be refused by this torch's reader."""

            def _load_model(self, model_file):
                return own

        return Calculator(
            model_file="",
            neighbor_list=transform.MatScipyNeighborList(cutoff=self.options["cutoff"]),
            energy_unit="eV",
        )


serve(Peer, "schnetpack")
