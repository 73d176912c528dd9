"""Energies, forces and stress of many structures by a trained potential, batch by batch.

It knows graphs and model files, nothing of where structures come from.

Legend: S structures, A atoms of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from atomloom.config.training import Batching
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import GraphTable
from atomloom.models.derivatives import evaluate_potential
from atomloom.models.registry import require_elements
from atomloom.training.devices import choose_device
from atomloom.training.predict import LoadedModel
from atomloom.training.references import EnergyReference


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a potential says of a table of graphs."""

    energy: np.ndarray
    """[S] float64, eV."""
    atom_energies: np.ndarray
    """[A] float64, eV; their sums are the energies."""
    forces: np.ndarray | None = None
    """[A, 3] float64, eV/A; None where not asked for."""
    stress: np.ndarray | None = None
    """[S, 3, 3] float64, eV/A^3, dE/dstrain / volume; zeros where the cell has no volume."""


def reference_of(loaded: LoadedModel) -> EnergyReference:
    """The energy reference of a loaded potential.

    Raises:
        AtomloomError: when the model is no potential.
    """
    if not isinstance(loaded.card.standardizer, EnergyReference):
        raise AtomloomError(
            f"{loaded.card.model.name} predicts {', '.join(loaded.card.targets)} and has no forces",
            todo="use a model trained as a potential, or `predict`",
        )
    return loaded.card.standardizer


def evaluate_table(
    loaded: LoadedModel,
    table: GraphTable,
    *,
    forces: bool = True,
    stress: bool = False,
    bounds: Batching | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluate graphs built by the potential's own spec (`loaded.card.graph`), in their order.

    Args:
        loaded: the potential.
        table: the graphs.
        forces: whether to compute forces.
        stress: whether to compute stresses.
        bounds: most structures, atoms, edges and triplets of a batch.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        AtomloomError: when the model is no potential, or was not trained on some element.
    """
    reference = reference_of(loaded)
    reference.require_elements(table.numbers)
    require_elements(loaded.model, table.numbers)
    device = choose_device(device)
    model = loaded.model.to(device)
    loader = GraphLoader(
        table, np.arange(len(table)), bounds=bounds, dtype=loaded.dtype, device=device
    )
    parts: dict[str, list[torch.Tensor]] = {"atom_energies": [], "forces": [], "stress": []}
    with torch.no_grad():
        for batch in loader:
            output = evaluate_potential(model, batch, forces=forces, stress=stress)
            for name, found in parts.items():
                if (value := getattr(output, name)) is not None:
                    found.append(value.double())
    whole = {n: torch.cat(p).cpu().numpy() * reference.scale for n, p in parts.items() if p}
    if not len(table):
        whole = {"atom_energies": np.zeros(0)}
    atom_energies = whole["atom_energies"] + reference.atom_offsets(table.numbers)
    return Evaluation(
        energy=np.add.reduceat(atom_energies, table.node_ptr[:-1]) if len(table) else np.zeros(0),
        atom_energies=atom_energies,
        forces=whole.get("forces", np.zeros((0, 3)) if forces else None),
        stress=whole.get("stress", np.zeros((0, 3, 3)) if stress else None),
    )
