"""Read-out by mean or sum, and global features: what of a structure the network adds up or is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomloom.config import parse_config
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.placement import open_loader
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.inference.global_features import GlobalFeatures
from atomloom.inference.model_file import read_model
from atomloom.inference.predict import load_model, predict_table
from atomloom.inference.scalers.target_scaler import TargetScaler
from atomloom.models import build_model
from atomloom.models.common.layers import pool, read_out, segment_sum
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from atomloom.training.trainer import train
from tests.unit.training.runs import history, small_config, small_data

MODELS = ("icomformer", "ecomformer")

# Trained on random elements, they are asked of rocksalt.
pytestmark = pytest.mark.filterwarnings("ignore:the model has not seen")


def quiet(_):
    """Take no notice."""


def rocksalt(repeat: int = 1) -> Structure:
    """The primitive cell, or so many of them in a row."""
    cell = 2.82 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    first = np.array([[0.0, 0, 0], [2.82, 0, 0]])
    positions = np.concatenate([first + i * cell[0] for i in range(repeat)])
    cell = cell * np.array([[repeat], [1], [1]])
    return Structure(np.array([11, 17] * repeat), positions, cell, np.ones(3, bool))


# --- read-out ---


def test_pooling_is_a_mean_or_a_sum():
    values = torch.arange(8.0).view(4, 2)
    graph, ptr = torch.tensor([0, 2, 2, 2]), torch.tensor([0, 1, 1, 4])
    assert pool(values, graph, ptr, "sum").tolist() == [[0, 1], [0, 0], [12, 15]]
    assert pool(values, graph, ptr, "mean").tolist() == [[0, 1], [0, 0], [4, 5]]


def test_the_sum_is_over_atoms_of_what_the_head_makes_of_each():
    nodes, graph, ptr = torch.randn(5, 3), torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 2, 5])
    given = torch.tensor([[1.0], [2.0]])
    head = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    sums = read_out(nodes, graph, ptr, "sum", head, given)
    each = head(torch.cat((nodes, given[graph]), dim=1))
    torch.testing.assert_close(sums, torch.stack((each[:2].sum(0), each[2:].sum(0))))
    means = read_out(nodes, graph, ptr, "mean", head, given)
    pooled = torch.stack((nodes[:2].mean(0), nodes[2:].mean(0)))
    torch.testing.assert_close(means, head(torch.cat((pooled, given), dim=1)))


def test_extensive_targets_are_standardised_by_the_atom():
    rng = np.random.default_rng(0)
    atoms = rng.integers(1, 30, size=60)
    targets = (-7.0 * atoms + rng.normal(size=60) * 3)[:, None]
    targets[3] = np.nan
    rows = np.arange(50)
    scale = TargetScaler.fit(targets, rows, ["e"], atoms=atoms)
    z = scale.standardize(targets, atoms)
    np.testing.assert_allclose([np.nanmean(z[rows]), np.nanstd(z[rows])], [0, 1], atol=1e-12)
    np.testing.assert_allclose(scale.restore(z, atoms), targets, rtol=1e-13)
    again = TargetScaler.from_dict(scale.to_dict())
    np.testing.assert_array_equal(again.restore(z, atoms), scale.restore(z, atoms))
    # Twice the cell, twice the network's sum: twice the target.
    np.testing.assert_allclose(scale.restore(2 * z, 2 * atoms), 2 * targets, rtol=1e-13)
    exact = TargetScaler.fit(-7.0 * atoms[:, None], rows, ["e"], atoms=atoms)
    assert exact.std.tolist() == [1.0]


def test_without_edges_along_the_lattice_a_supercell_has_exactly_twice_the_value(tmp_path):
    """Of eComFormer, on graphs that its config does not allow: it is these edges that tell the cell."""
    data = small_data(40)
    targets = data.targets * np.diff(data.table.node_ptr)[:, None]
    data = LabelledGraphs(data.table, targets, data.rows)
    model = {"name": "ecomformer", "width": 8, "layers": 2, "readout": "sum"}
    train(data, small_config(model=model, precision="64", epochs=2), tmp_path, quiet)
    loaded = load_model(tmp_path / "model.safetensors")
    graph = loaded.card.graph.model_copy(update={"lattice_edges": False, "max_neighbors": 6})
    object.__setattr__(loaded.card, "graph", graph)
    assert loaded.card.scaler.extensive
    one, two, three = loaded.predict([rocksalt(1), rocksalt(2), rocksalt(3)])[:, 0]
    np.testing.assert_allclose([two, three], [2 * one, 3 * one], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "neighbors", "exact"),
    [
        ("icomformer", 6, False),
        ("ecomformer", 6, False),
        ("alignn", 6, True),
        ("alignn", 12, False),  # an atom of the small cell is its own neighbour
        ("painn", None, True),
        ("tensornet", None, True),
        ("tensornet_property", None, True),
        ("crystal_transformer", None, True),
        ("nequip", None, True),
        ("chebyshev", None, True),
    ],
)
def test_twice_the_cell_has_what_the_description_of_readout_says(name, neighbors, exact):
    content = {"name": name, "readout": "sum", "width": 8}
    if name in ("painn", "tensornet"):
        content = {"name": name, "width": 8, "layers": 2}
    if name == "nequip":
        content = {"name": name, "features": [8, 4], "layers": 2}
    if name == "chebyshev":
        content = {"name": name, "species": ["Na", "Cl"], "radial_order": 4, "angular_order": 2}
    dataset = {"name": "x", "source": "x", "target": "energy"}
    graph = {} if neighbors is None else {"max_neighbors": neighbors}
    config = parse_config({"dataset": dataset, "model": content, "graph": graph})
    torch.manual_seed(1)
    model = build_model(config.model, 1).double().eval()
    table = build_graphs(StructureTable.from_structures([rocksalt(1), rocksalt(2)]), config.graph)
    (batch,) = open_loader(table, np.arange(2), dtype=torch.float64)
    with torch.no_grad():
        values = model(batch).reshape(-1)
    if config.model.kind == "potential":
        values = segment_sum(values, batch.node_graph, 2)
    one, two = values.tolist()
    assert (abs(two / one - 2) < 1e-12) == exact
    assert two == pytest.approx(2 * one, rel=0.5)


@pytest.mark.parametrize("name", MODELS)
def test_extensive_targets_are_learnt_in_real_units(tmp_path, name):
    data = small_data(40)
    targets = data.targets * np.diff(data.table.node_ptr)[:, None]
    data = LabelledGraphs(data.table, targets, data.rows)
    config = small_config(
        model={"name": name, "width": 8, "layers": 2, "readout": "sum"},
        epochs=6,
        learning_rate=0.01,
    )
    result = train(data, config, tmp_path, quiet)
    rows = data.split("val")
    predicted = predict_table(load_model(tmp_path / "model.safetensors"), data.table, rows)
    error = np.abs(predicted - targets[rows]).mean()
    assert error == pytest.approx(result.best_val_mae["target0"], rel=1e-5)
    losses = [row["train_loss"] for row in history(tmp_path)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"training": {"loss": "bce"}}, "not for classes"),
        ({"training": {"log_targets": ["a"]}}, "logarithms"),
        ({"graph": {"primitive": True}}, "number of atoms"),
    ],
)
def test_what_cannot_be_added_up_is_refused(config, message):
    with pytest.raises(AtomloomError, match=message):
        parse_config(
            {
                "dataset": {"name": "x", "source": "x", "target": "a"},
                "model": {"name": "icomformer", "readout": "sum"},
                **config,
            }
        )


# --- global features ---


def heated(structures: int = 60) -> LabelledGraphs:
    """A target that depends on nothing but a temperature."""
    data = small_data(structures)
    rng = np.random.default_rng(5)
    given = np.column_stack((rng.uniform(100, 900, structures), rng.uniform(0, 5, structures)))
    targets = 3.0 + given[:, :1] / 200.0
    return LabelledGraphs(data.table, targets, data.rows, global_features=given)


GIVEN = {"global_features": ["temperature", "pressure"]}


@pytest.mark.parametrize("readout", ["mean", "sum"])
@pytest.mark.parametrize("name", MODELS)
def test_global_features_reach_the_network(tmp_path, name, readout):
    data = heated()
    model = {"name": name, "width": 8, "layers": 2, "readout": readout}
    config = small_config(model=model, dataset=GIVEN, epochs=2)
    train(data, config, tmp_path, quiet)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.card.global_features.names == ("temperature", "pressure")
    rows = data.split("train")
    np.testing.assert_allclose(
        loaded.card.global_features.mean, data.global_features[rows].mean(axis=0)
    )
    structures = [rocksalt(1), rocksalt(1)]
    cold, hot = loaded.predict(
        structures, global_features={"temperature": [100, 900], "pressure": 1.0}
    )
    assert abs(cold - hot) > 1e-4
    array = np.array([[100.0, 1.0], [900.0, 1.0]])
    np.testing.assert_array_equal(loaded.predict(structures, global_features=array), [cold, hot])


@pytest.mark.slow
def test_what_depends_on_temperature_alone_is_learnt(tmp_path):
    data = heated(120)
    model = {"name": "ecomformer", "width": 8, "layers": 2}
    config = small_config(model=model, dataset=GIVEN, epochs=25, learning_rate=0.02)
    result = train(data, config, tmp_path, quiet)
    spread = np.abs(data.targets - data.targets.mean()).mean()
    assert result.best_val_mae["target0"] < 0.3 * spread


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "needs temperature, pressure for every structure"),
        ({"temperature": 300}, "global features are temperature, not temperature, pressure"),
        ({"temperature": 300, "pressure": [1, 2, 3]}, "not one number for each of 2"),
        (np.zeros((2, 1)), r"shape \(2, 1\), not \(2, 2\)"),
        ({"temperature": 300, "pressure": np.nan}, "not a finite number"),
    ],
)
def test_global_features_that_do_not_fit_are_refused(given, message):
    features = GlobalFeatures(("temperature", "pressure"), np.zeros(2), np.ones(2))
    with pytest.raises(AtomloomError, match=message):
        features.read(given, 2)


def test_equal_and_unknown_global_features():
    values = np.array([[300.0, 1.0], [300.0, 3.0], [300.0, np.nan]])
    features = GlobalFeatures.fit(values, np.array([0, 1]), ["t", "p"])
    np.testing.assert_allclose(features.standardize(values[:2]), [[0, -1], [0, 1]])
    with pytest.raises(AtomloomError, match="p of row 2 is nan"):
        GlobalFeatures.fit(values, np.arange(3), ["t", "p"])


@pytest.mark.parametrize("name", MODELS)
def test_without_global_features_parameters_are_those_of_the_published_model(tmp_path, name):
    config = small_config(model={"name": name, "width": 8, "layers": 2})
    plain, told = build_model(config.model, 1), build_model(config.model, 1, 2)
    assert plain.state_dict().keys() == told.state_dict().keys()
    assert plain.fc[0].weight.shape == (8, 8)
    assert told.fc[0].weight.shape == (8, 10)
    train(small_data(30), small_config(epochs=1), tmp_path, quiet)
    loaded = load_model(tmp_path / "model.safetensors")
    with pytest.raises(AtomloomError, match="without global features"):
        loaded.predict([rocksalt()], global_features={"temperature": 1})
    assert read_model(tmp_path / "model.safetensors")[1].global_features is None


def test_potentials_take_no_global_features():
    with pytest.raises(AtomloomError, match="global_features are not for painn"):
        parse_config(
            {
                "dataset": {"name": "x", "source": "x", "target": "energy", **GIVEN},
                "model": {"name": "painn"},
            }
        )
