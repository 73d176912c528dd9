"""MACE at the default size of its training script in the table of peers: see `serving`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

import numpy as np
import torch

if slice not in torch.serialization.get_safe_globals():
    # Tables of e3nn 0.4.4 are a file that holds slices, which torch's reader refuses by itself.
    torch.serialization.add_safe_globals([slice])

with redirect_stdout(sys.stderr):  # mace greets when it is imported
    from e3nn import o3
    from mace import data, modules, tools
    from mace.calculators import MACECalculator
    from mace.tools import torch_geometric

from serving import Potential, serve


class Peer(Potential):
    def build(self):
        torch.set_default_dtype(torch.float32)
        self.table = tools.AtomicNumberTable(sorted(self.options["numbers"]))
        return modules.ScaleShiftMACE(
            r_max=self.options["cutoff"],
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
            num_interactions=2,
            num_elements=len(self.table),
            hidden_irreps=o3.Irreps("128x0e + 128x1o"),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=np.zeros(len(self.table)),
            avg_num_neighbors=self.options["neighbors"],
            atomic_numbers=self.table.zs,
            correlation=3,
            gate=torch.nn.functional.silu,
            radial_MLP=[64, 64, 64],
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        )

    def collate(self, frames):
        found = [
            data.AtomicData.from_config(
                data.config_from_atoms(atoms),
                z_table=self.table,
                cutoff=self.options["cutoff"],
            )
            for atoms in frames
        ]
        loader = torch_geometric.dataloader.DataLoader(found, batch_size=len(found), shuffle=False)
        return next(iter(loader))

    def predict(self, batch, training):
        found = self.model(batch.to_dict(), training=training)
        return found["energy"], found["forces"]

    def calculator(self):
        return MACECalculator(models=self.model, device="cpu", default_dtype="float32")


serve(Peer, "mace-torch", "e3nn")
