"""metatrain's PET and SOAP-BPNN at their default sizes in the table of peers: see `serving`."""

from __future__ import annotations

from importlib import import_module

import torch
from metatomic.torch import systems_to_torch
from metatomic_ase import MetatomicCalculator
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.evaluate_model import evaluate_model
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)
from omegaconf import OmegaConf
from serving import Potential, serve


class Peer(Potential):
    def build(self):
        name = self.options["architecture"]
        hypers = get_default_hypers(name)["model"]
        if name == "pet":
            hypers["cutoff"] = self.options["cutoff"]
        else:
            hypers["soap"]["cutoff"]["radius"] = self.options["cutoff"]
        energy = OmegaConf.create({"quantity": "energy", "unit": "eV"})
        self.targets = {
            "energy": get_energy_target_info("energy", energy, add_position_gradients=True)
        }
        made = import_module(f"metatrain.{name}").__model__
        return made(hypers, DatasetInfo("angstrom", self.options["numbers"], self.targets))

    def collate(self, frames):
        wanted = get_requested_neighbor_lists(self.model)
        systems = systems_to_torch(frames, dtype=torch.float32)
        return [get_system_with_neighbor_lists(one, wanted) for one in systems]

    def predict(self, batch, training):
        found = evaluate_model(self.model, batch, self.targets, is_training=training)
        block = found["energy"].block()
        return block.values.view(-1), -block.gradient("positions").values.view(-1, 3)

    def calculator(self):
        return MetatomicCalculator(self.model.export(), device="cpu")


serve(Peer, "metatrain", "metatomic-torch", "metatensor-torch")
