"""Vectors of structures and scalars of atoms: learnt alone, with each other and with energies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from atomloom.errors import AtomloomError
from atomloom.inference.model_file import read_model
from atomloom.inference.predict import load_model, predict_all
from atomloom.inference.scalers.direct_scaler import DirectScaler
from atomloom.models import build_model
from atomloom.targets import spec_of
from atomloom.training.objectives.build import build_objective
from atomloom.training.trainer import train
from tests.unit.training.direct import config_of, crystals, data_of, ionic_molecules
from tests.unit.training.runs import history
from tests.unit.training.test_resume import Killed, assert_equal_runs, kill_at, quiet

PER_ATOM = {"target_kinds": {"charges": "per_atom"}}
SETS = {
    "energy, forces, dipole": ("painn", ("energy", "forces", "dipole"), {}),
    "dipole": ("painn", ("dipole",), {}),
    "charges": ("painn", ("charges",), {}),
    "dipole, charges": ("painn", ("dipole", "charges"), {}),
    "energy, charges": ("painn", ("energy", "charges"), {}),
    "iComFormer": ("icomformer", ("gap", "charges"), PER_ATOM),
    "iComFormer, charges": ("icomformer", ("charges",), PER_ATOM),
    "eComFormer": ("ecomformer", ("charges", "gap"), PER_ATOM),
    "ALIGNN": ("alignn", ("gap", "charges"), PER_ATOM),
}


def structures_of(model):
    return ionic_molecules() if model == "painn" else crystals()


def test_dipoles_of_ionic_molecules_are_learnt(tmp_path):
    config = config_of(
        ["dipole"], epochs=60, precision="64", batch={"structures": 10}, learning_rate=0.02
    )
    structures = ionic_molecules(60)
    data = data_of(structures, config)
    train(data, config, tmp_path, quiet)
    loaded = load_model(tmp_path / "model.safetensors")
    rows = data.split("val")
    found = predict_all(loaded, data.table, rows).heads["dipole"]
    wanted = data.arrays["dipole"][rows]
    assert np.abs(found - wanted).mean() < 0.1 * np.abs(wanted).mean()
    # They turn with the molecule, and do not feel where it is.
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turned = [structures[row] for row in rows]
    for one in turned:
        object.__setattr__(one, "positions", one.positions @ turn + 5.0)
    again = loaded.predict(turned)
    assert set(again) == {"dipole"}
    np.testing.assert_allclose(again["dipole"], found @ turn, atol=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_targets_are_learnt_together_with_values_missing_of_each(name, tmp_path):
    model, targets, dataset = SETS[name]
    config = config_of(targets, model, dataset, epochs=12, precision="64")
    hidden = {target: [3 * place + 1, 3 * place + 2] for place, target in enumerate(targets)}
    data = data_of(structures_of(model), config, hidden)
    result = train(data, config, tmp_path, quiet)
    assert all(np.isfinite(list(result.best_val_mae.values())))
    rows = history(tmp_path)
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]
    _, card = read_model(tmp_path / "model.safetensors")
    assert card.targets == targets
    assert {one.name: one.kind for one in card.specs} == {o.name: o.kind for o in config.targets}
    found = predict_all(load_model(tmp_path / "model.safetensors"), data.table)
    for spec in card.direct:
        values = found.heads[spec.name]
        assert values.shape == data.arrays[spec.name].shape
        known = np.isfinite(data.arrays[spec.name])
        spread = np.abs(data.arrays[spec.name][known] - data.arrays[spec.name][known].mean())
        assert np.abs(values - data.arrays[spec.name])[known].mean() < 1.5 * spread.mean()


def test_unknown_values_teach_nothing():
    """Whatever a network says of them, neither loss nor gradient feels it."""
    config = config_of(["energy", "dipole", "charges"], precision="64")
    data = data_of(ionic_molecules(8), config, {"dipole": [1, 2], "charges": [2, 3]})
    objective = build_objective(data, config, data.split("train"), data.split("val"))
    labels = objective.labels(training=True)
    options = {"of_atoms": labels.of_atoms, "of_structures": labels.of_structures}
    (batch,) = data.loader(np.arange(8), labels.targets, dtype=torch.float64, **options)
    model = build_model(config.model, 1, **objective.model_options).double()
    sums = objective.sums(objective.step_network(model)(batch), batch)
    hidden = {"dipole": [1, 2], "charges": np.flatnonzero(np.isin(batch.node_graph, [2, 3]))}

    def spoilt(said):
        for name, rows in hidden.items():
            values = said.heads[name].clone()
            values[rows] = 1e6
            said.heads[name] = values
        return said

    network = objective.step_network(model)
    again = objective.sums(spoilt(network(batch)), batch)
    torch.testing.assert_close(again, sums, rtol=1e-12, atol=0)
    assert objective.terms[1].known().tolist() == [3, 0, 0, 3, 3, 3, 3, 3]


def test_a_weight_of_nothing_leaves_a_target_unlearnt_and_the_others_as_they_are(tmp_path):
    structures = ionic_molecules(16)
    losses = {}
    for weight in (1.0, 2.0, 0.0):
        config = config_of(["energy", "dipole"], precision="64", loss_weights={"dipole": weight})
        data = data_of(structures, config)
        objective = build_objective(data, config, data.split("train"), data.split("val"))
        sums, shares = torch.tensor([3.0, 5.0]), torch.tensor([0.5, 0.1])
        losses[weight] = float(objective.loss(sums, shares))
    assert losses[1.0] == pytest.approx(1.5 + 0.5)
    assert losses[2.0] == pytest.approx(1.5 + 1.0)
    assert losses[0.0] == pytest.approx(1.5)


def test_scalars_have_weights_too():
    structures = crystals(16)
    for structure in structures:
        structure.properties["other"] = np.float64(np.sqrt(structure.properties["gap"]))
    outputs = torch.randn(16, 2, dtype=torch.float64)
    sums = {}
    for weight in (None, 0.0, 3.0):
        options = {} if weight is None else {"loss_weights": {"other": weight}}
        config = config_of(["gap", "other"], "icomformer", precision="64", **options)
        data = data_of(structures, config)
        objective = build_objective(data, config, data.split("train"), data.split("val"))
        (term,) = objective.terms
        sums[weight] = float(term.loss_of(outputs, torch.from_numpy(term.targets)))
    gap = sums[0.0]
    assert sums[None] > gap
    assert sums[3.0] == pytest.approx(gap + 3.0 * (sums[None] - gap))


def test_a_killed_training_of_several_kinds_resumes_to_the_same_bits(tmp_path, monkeypatch):
    config = config_of(
        ["energy", "forces", "dipole", "charges"],
        epochs=3,
        batch={"structures": 6},
        checkpoint_minutes=1e-9,
        ema_decay=0.9,
    )
    data = data_of(ionic_molecules(16), config, {"dipole": [2, 5], "charges": [3]})
    train(data, config, tmp_path / "whole", quiet)
    with monkeypatch.context() as patch:
        kill_at(patch, "_seed_noise", 3)
        with pytest.raises(Killed):
            train(data, config, tmp_path / "parts", quiet)
    train(data, config, tmp_path / "parts", quiet)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_accumulated_small_batches_take_the_step_of_the_large_one(tmp_path):
    structures = ionic_molecules(24)
    for name, options in (
        ("one", {"batch": {"structures": 20}}),
        ("four", {"batch": {"structures": 5}, "accumulate": 4}),
    ):
        config = config_of(["dipole", "charges"], epochs=2, precision="64", **options)
        train(data_of(structures, config, {"charges": [4]}), config, tmp_path / name, quiet)
    one, four = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "four"))
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("targets", "made"), [("dipole", ionic_molecules), ("charges", crystals)])
def test_the_log_does_not_warn_of_vectors_of_molecules_nor_of_scalars(tmp_path, targets, made):
    config = config_of([targets], epochs=1)
    lines = []
    train(data_of(made(12), config), config, tmp_path, lines.append)
    assert not any("warning" in line for line in lines)


def test_the_log_warns_of_vectors_of_periodic_structures(tmp_path):
    structures = crystals(12)
    for structure in structures:
        structure.properties["dipole"] = structure.properties["charges"] @ structure.positions
    config = config_of(["dipole"], epochs=1)
    lines = []
    train(data_of(structures, config), config, tmp_path, lines.append)
    assert any("depends on the cell chosen" in line for line in lines)


# --- scalers ---


def test_numbers_of_atoms_have_mean_and_deviation_by_element():
    numbers = np.array([26, 26, 26, 8, 8, 1])
    values = np.array([2.0, 2.2, 2.4, 0.0, 0.1, np.nan])
    scaler = DirectScaler.fit(spec_of("m", "per_atom"), values, np.ones(6, dtype=bool), numbers)
    assert scaler.mean[26] == pytest.approx(2.2)
    assert scaler.mean[8] == pytest.approx(0.05)
    z = scaler.standardize(values, numbers)
    np.testing.assert_allclose(scaler.restore(z, numbers), values)
    assert np.nanmax(np.abs(z)) < 2
    # An element without values is taken for the mean of all.
    assert scaler.mean[1] == pytest.approx(np.nanmean(values))
    again = DirectScaler.from_dict(scaler.to_dict())
    np.testing.assert_array_equal(again.mean, scaler.mean)
    np.testing.assert_array_equal(again.std, scaler.std)


def test_vectors_have_one_scale_and_no_mean():
    values = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 5.0], [np.nan, np.nan, np.nan]])
    scaler = DirectScaler.fit(
        spec_of("mu", "vector"), values, np.ones(3, dtype=bool), np.array([1, 1, 1])
    )
    assert scaler.std == pytest.approx(np.sqrt(50 / 6))
    assert scaler.standardize(np.zeros((1, 3)), np.array([1])).tolist() == [[0, 0, 0]]
    again = DirectScaler.from_dict(scaler.to_dict())
    assert again.std == scaler.std


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "no training structure"), (np.inf, "infinite")]
)
def test_values_that_cannot_be_learnt_are_named(value, said):
    with pytest.raises(AtomloomError, match=said):
        DirectScaler.fit(
            spec_of("mu", "vector"),
            np.full((2, 3), value),
            np.ones(2, dtype=bool),
            np.array([1, 1]),
        )
