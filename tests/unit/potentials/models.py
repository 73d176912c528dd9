"""Small random potentials as model files, for the tests of what uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

from atomloom.config.dataset import Checks
from atomloom.config.graph import GraphSpec
from atomloom.config.model import (
    ChebyshevConfig,
    IComFormerConfig,
    ModelSection,
    NequIPConfig,
    PaiNNConfig,
    TensorNetConfig,
)
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.inference.model_file import ModelCard, write_model
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.models import build_model
from atomloom.models.derivatives import evaluate_potential
from atomloom.potentials.evaluation import plain_structure, structure_table
from atomloom.structures.elements import atomic_number


def rattled_copper(count: int) -> list:
    """Different frames of four atoms."""
    made = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        made.append(atoms)
    return made


def write_potential(
    path: Path,
    elements: tuple[str, ...] = ("Cu",),
    *,
    kind: str = "chebyshev",
    seed: int = 0,
    scale: float = 0.3,
    cutoff: float = 4.5,
    min_distance: float = 0.3,
) -> Path:
    """A potential with random weights: smooth, and as good as a trained one for what is tested."""
    if kind == "chebyshev":
        config = ChebyshevConfig(
            species=elements,
            radial_order=6,
            radial_cutoff=cutoff,
            angular_order=3,
            angular_cutoff=cutoff - 1.0,
            min_distance=min_distance,
        )
    elif kind == "tensornet":
        config = TensorNetConfig(width=16, cutoff=cutoff)
    elif kind == "nequip":
        config = NequIPConfig(features=(16, 8), layers=2, cutoff=cutoff)
    else:
        config = PaiNNConfig(width=16, layers=2, cutoff=cutoff)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, 1)
    energies = np.full(119, np.nan)
    for place, element in enumerate(elements):
        energies[atomic_number(element)] = -3.0 - place
    card = ModelCard(
        config,
        GraphSpec(neighbors="radius", cutoff=cutoff),
        ("energy", "forces", "stress"),
        "eV",
        AtomicEnergies(energies, 0.1, scale),
        {"epoch": 0},
    )
    write_model(path, model.state_dict(), card)
    return path


def write_property_model(
    path: Path,
    seed: int = 0,
    scaler: TargetScaler | None = None,
    config: ModelSection | None = None,
    **checks: float,
) -> Path:
    """A property model with random weights, of one target; it may have been trained under other checks."""
    config = config or IComFormerConfig(width=8, layers=2)
    scaler = scaler or TargetScaler(np.array([1.0]), np.array([2.0]), np.array([False]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, scaler.outputs)
    card = ModelCard(
        config,
        GraphSpec(**{"max_neighbors": 6} | config.graph_needs()),
        ("gap",),
        "eV",
        scaler,
        {"epoch": 0},
        checks=Checks(**checks),
    )
    write_model(path, model.state_dict(), card)
    return path


def fit_copper(path: Path, steps: int = 120) -> Path:
    """A potential fitted to a few strained and displaced crystals of ASE's EMT: bound, with a minimum."""
    config = ChebyshevConfig(
        species=("Cu",),
        radial_order=4,
        radial_cutoff=5.0,
        angular_order=1,
        angular_cutoff=4.0,
        hidden=(5,),
    )
    draw = np.random.default_rng(0)
    crystals = []
    for place in range(32):
        crystal = bulk("Cu", cubic=True)
        strain = np.eye(3) * draw.uniform(0.93, 1.08) + draw.normal(scale=0.02, size=(3, 3))
        crystal.set_cell(crystal.cell.array @ strain, scale_atoms=True)
        crystal.rattle(0.05 * (place % 5), seed=place)
        crystal.calc = EMT()
        crystals.append(crystal)
    spec = GraphSpec(neighbors="radius", cutoff=5.0)
    table = build_graphs(structure_table([plain_structure(c) for c in crystals]), spec)
    rows = np.arange(len(table))
    batch = GraphLoader(table, rows, dtype=torch.float64).slice(rows)
    energies = torch.tensor([c.get_potential_energy() / 4 for c in crystals])
    forces = torch.tensor(np.concatenate([c.get_forces() for c in crystals]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config, 1).double()
    with torch.no_grad():
        model.fit_features(model.features(batch), batch.numbers)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        said = evaluate_potential(model, batch, forces=True, create_graph=True)
        loss = (said.energy / 4 - energies).square().mean() * 20
        loss = loss + (said.forces - forces).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    zero = np.full(119, np.nan)
    zero[29] = 0.0
    reference = AtomicEnergies(zero, 0.0, 1.0)
    write_model(
        path, model.state_dict(), ModelCard(config, spec, ("energy", "forces"), "eV", reference, {})
    )
    return path
