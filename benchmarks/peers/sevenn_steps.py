"""SevenNet-0 with its published weights in the table of peers: see `serving`."""

from __future__ import annotations

from pathlib import Path

import sevenn
import sevenn._keys as KEY
from serving import Potential, serve
from sevenn import util
from sevenn.atom_graph_data import AtomGraphData
from sevenn.calculator import SevenNetCalculator
from sevenn.train.dataload import unlabeled_atoms_to_graph
from torch_geometric.data import Batch

CHECKPOINTS = Path(sevenn.__file__).parent / "pretrained_potentials"


class Peer(Potential):
    def build(self):
        checkpoint = util.load_checkpoint(str(CHECKPOINTS / self.options["checkpoint"]))
        self.cutoff = checkpoint.config[KEY.CUTOFF]
        return checkpoint.build_model()

    def collate(self, frames):
        return Batch.from_data_list(
            [
                AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, self.cutoff))
                for atoms in frames
            ]
        )

    def predict(self, batch, training):
        self.model.set_is_batch_data(True)
        found = self.model(batch.clone())
        return found[KEY.PRED_TOTAL_ENERGY].view(-1), found[KEY.PRED_FORCE]

    def calculator(self):
        checkpoint = str(CHECKPOINTS / self.options["checkpoint"])
        return SevenNetCalculator(checkpoint, device="cpu", file_type="checkpoint")


serve(Peer, "sevenn", "e3nn")
