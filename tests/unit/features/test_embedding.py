"""An embedding is what a network's own output is made of, averaged over the atoms of a structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from atomloom.config.features import Feature
from atomloom.config.graph import GraphSpec
from atomloom.config.model import ALIGNNConfig
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.features.embedding import Embedding
from atomloom.graphs.build import build_graphs
from atomloom.inference.global_features import GlobalFeatures
from atomloom.inference.model_file import ModelCard, read_model, write_model
from atomloom.inference.predict import load_model
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.models import build_model
from atomloom.structures.adapters import to_structure
from atomloom.structures.table import StructureTable
from tests.unit.potentials.models import rattled_copper, write_potential, write_property_model


def source(path: Path, **options) -> Embedding:
    return Embedding(
        Feature(source="embedding", model=str(path), options={"device": "cpu", **options})
    )


def table_of(crystals) -> StructureTable:
    return StructureTable.from_structures([to_structure(atoms) for atoms in crystals])


def values(path: Path, crystals) -> np.ndarray:
    return np.stack([one.values for one in source(path).describe(table_of(crystals))])


def write_alignn(path: Path) -> Path:
    config = ALIGNNConfig(width=8, alignn_layers=2, gcn_layers=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config, 1)
    scaler = TargetScaler(np.array([1.0]), np.array([2.0]), np.array([False]))
    graph = GraphSpec(**config.graph_needs(), max_neighbors=6)
    write_model(path, model.state_dict(), ModelCard(config, graph, ("gap",), "eV", scaler, {}))
    return path


@pytest.mark.parametrize(
    ("kind", "features"),
    [("painn", lambda m, b: m.represent(b)[0]), ("nequip", lambda m, b: m.scalars(b, None))],
    ids=["painn", "nequip"],
)
def test_an_embedding_is_the_mean_of_the_last_features(kind, features, tmp_path):
    path = write_potential(tmp_path / "cu.safetensors", kind=kind)
    crystals = rattled_copper(3)
    loaded = load_model(path)
    graphs = build_graphs(table_of(crystals), loaded.card.graph)
    batch = GraphLoader(graphs, np.arange(3), dtype=loaded.dtype).slice(np.arange(3))
    of_atoms = features(loaded.model, batch).double().numpy().reshape(3, 4, -1)
    assert values(path, crystals) == pytest.approx(of_atoms.mean(axis=1), abs=1e-6)


@pytest.mark.parametrize(
    ("write", "head"),
    [
        (write_property_model, lambda model: lambda x: model.fc_out(model.fc(x))),
        (write_alignn, lambda model: model.fc),
    ],
    ids=["icomformer", "alignn"],
)
def test_the_head_of_a_network_makes_its_prediction_of_its_embedding(write, head, tmp_path):
    """Of symmetric crystals, too, whose equal atoms are computed once."""
    path = write(tmp_path / "gap.safetensors")
    crystals = [*rattled_copper(2), bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.6)]
    loaded = load_model(path)
    embedded = torch.from_numpy(values(path, crystals)).to(loaded.dtype)
    with torch.no_grad():
        found = loaded.card.scaler.restore(head(loaded.model)(embedded).double().numpy())
    assert found == pytest.approx(loaded.predict(crystals), rel=1e-5)


def test_what_a_network_does_not_know_fails_alone(tmp_path):
    path = write_potential(tmp_path / "cu.safetensors", kind="painn")
    crystals = [bulk("Cu"), bulk("Fe"), bulk("Cu", a=3.7)]
    one, other, third = source(path).describe(table_of(crystals))
    assert "Fe" in other.failure
    assert other.values is None
    assert np.stack([one.values, third.values]) == pytest.approx(
        values(path, [crystals[0], crystals[2]]), abs=1e-6
    )
    gap = write_property_model(tmp_path / "gap.safetensors")
    _, molecule = source(gap).describe(
        table_of([bulk("Cu"), Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])])
    )
    assert "only crystals" in molecule.failure


def test_a_model_without_features_of_the_structure_alone_is_refused(tmp_path):
    with pytest.raises(AtomloomError, match="chebyshev has no layer of learnt features"):
        source(write_potential(tmp_path / "cu.safetensors"))
    gap = write_property_model(tmp_path / "gap.safetensors")
    with pytest.raises(AtomloomError, match="no option `dtype`; known are device, trust"):
        source(gap, dtype="float64")
    with pytest.raises(AtomloomError, match="no model here"):
        source(tmp_path / "gone.safetensors")
    _, card = read_model(gap)
    told = GlobalFeatures(("T",), np.zeros(1), np.ones(1))
    with torch.random.fork_rng(devices=[]):
        model = build_model(card.model, 1, global_features=1)
    card = ModelCard(card.model, card.graph, card.targets, "", card.scaler, {}, told)
    write_model(tmp_path / "told.safetensors", model.state_dict(), card)
    with pytest.raises(AtomloomError, match="and of further numbers"):
        source(tmp_path / "told.safetensors")
