"""NequIP in the table of peers: see `serving`."""

from __future__ import annotations

from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from serving import Potential, serve


class Peer(Potential):
    def build(self):
        set_global_state()
        symbols = self.options["symbols"]
        self.types = ChemicalSpeciesToAtomTypeMapper(symbols)
        return NequIPGNNModel(
            seed=0,
            model_dtype="float32",
            type_names=symbols,
            r_max=self.options["cutoff"],
            avg_num_neighbors=self.options["neighbors"],
            compile_mode=self.options["compile_mode"],
            **self.options["size"],
        )

    def collate(self, frames):
        found = []
        for atoms in frames:
            one = from_ase(
                atoms.__class__(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            )
            found.append(self.types(compute_neighborlist_(one, r_max=self.options["cutoff"])))
        return AtomicDataDict.batched_from_list(found)

    def predict(self, batch, training):
        found = self.model(dict(batch))
        return found["total_energy"].view(-1), found["forces"]

    def calculator(self):
        neighbors = NeighborListTransform(r_max=self.options["cutoff"])
        return NequIPCalculator(self.model, device="cpu", transforms=[self.types, neighbors])


serve(Peer, "nequip", "e3nn")
