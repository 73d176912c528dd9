"""Training on energies, forces and stress."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from atomloom.config import parse_config
from atomloom.config.model import ChebyshevConfig
from atomloom.config.training import Batching, PotentialTraining
from atomloom.errors import AtomloomError
from atomloom.inference.scalers.atomic_energies import AtomicEnergies
from atomloom.models.derivatives import PotentialOutput
from atomloom.training.fabric import open_fabric
from atomloom.training.objectives.base import step_shares
from atomloom.training.objectives.potential import PotentialObjective
from atomloom.training.trainer import train
from tests.unit.training.potentials import (
    CUTOFF,
    OFFSETS,
    PairModel,
    pair_config,
    pair_data,
    use_pair_model,
)
from tests.unit.training.runs import history
from tests.unit.training.test_resume import Killed, assert_equal_runs, kill_at, quiet


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_pair_potential_is_learnt_from_energies_forces_and_stress(tmp_path, monkeypatch):
    """Signs, units and references are right, or nothing would fit exactly."""
    use_pair_model(monkeypatch)
    data = pair_data()
    config = pair_config(epochs=300, learning_rate=0.05, batch={"structures": 10})
    result = train(data, config, tmp_path, quiet)
    spread = np.abs(data.arrays["forces"]).mean()
    assert result.best_val_mae["energy_per_atom"] < 2e-3
    assert result.best_val_mae["forces"] < 0.01 * spread
    components = data.arrays["stress"][:, *np.triu_indices(3)]  # each once, as in the error
    assert result.best_val_mae["stress"] < 0.01 * np.abs(components).mean()


@pytest.mark.parametrize("targets", [("energy",), ("energy", "forces"), ("energy", "stress")])
def test_each_set_of_targets_trains(tmp_path, monkeypatch, targets):
    use_pair_model(monkeypatch)
    train(pair_data(12), pair_config(targets, epochs=2), tmp_path, quiet)
    names = {"energy": "energy_per_atom"}
    columns = [names.get(name, name) for name in targets]
    row = history(tmp_path)[-1]
    wanted = ["val_mae"] if len(columns) == 1 else [f"val_mae_{name}" for name in columns]
    assert all(np.isfinite(row[name]) for name in wanted)


@pytest.mark.parametrize(
    ("targets", "potential"),
    [(("energy",), {}), (("energy", "forces"), {"force_fraction": 0.5})],
)
def test_cached_features_train_the_same_network(tmp_path, targets, potential):
    data = pair_data(20)
    for cached in (True, False):
        options = {**potential, "cache_features": cached}
        config = pair_config(targets, options, epochs=3, batch={"structures": 5})
        model = ChebyshevConfig(
            species=("Li", "F"),
            radial_order=4,
            radial_cutoff=CUTOFF,
            angular_cutoff=3.0,
            angular_order=2,
        )
        lines: list[str] = []
        config = config.model_copy(update={"model": model})
        train(data, config, tmp_path / str(cached), lines.append)
        assert any("cached" in line for line in lines) == cached
    one, other = (weights(tmp_path / str(cached)) for cached in (True, False))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("derived", [(), ("forces",), ("stress",), ("forces", "stress")])
def test_a_step_computes_the_derivatives_that_are_targets_and_no_others(derived):
    data = pair_data(8)
    rows = data.split("train")
    objective = PotentialObjective(data, pair_config(("energy", *derived)), rows, data.split("val"))
    (batch,) = data.loader(rows, bounds=Batching(structures=8), dtype=torch.float64)
    output = objective.step_network(PairModel().double())(batch)
    assert (output.forces is not None) == ("forces" in derived)
    assert (output.stress is not None) == ("stress" in derived)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_accumulated_small_batches_take_the_step_of_the_large_one(tmp_path, monkeypatch, loss):
    use_pair_model(monkeypatch)
    data = pair_data(24)
    options = {"epochs": 2, "loss": loss, "potential": {"force_fraction": 0.5}}
    train(data, pair_config(batch={"structures": 20}, **options), tmp_path / "one", quiet)
    small = pair_config(batch={"structures": 5}, accumulate=4, **options)
    train(data, small, tmp_path / "four", quiet)
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-9, atol=1e-11)


def test_rmse_is_the_root_of_the_mean_squares_of_a_batch():
    data = pair_data(8)
    config = pair_config(("energy", "forces"), loss="rmse", potential={"energy_weight": 0.9})
    objective = PotentialObjective(data, config, data.split("train"), data.split("val"))
    loss = objective.loss(torch.tensor([8.0, 27.0]), torch.tensor([0.5, 1.0 / 3.0]))
    assert loss.item() == pytest.approx(0.9 * 2.0 + 3.0, rel=1e-6)
    with pytest.raises(ValueError, match="accumulate"):
        pair_config(loss="rmse", accumulate=2)


def test_forces_that_are_not_drawn_do_not_count(tmp_path, monkeypatch):
    use_pair_model(monkeypatch)
    data = pair_data(20)
    config = pair_config(
        epochs=2,
        potential={"force_fraction": 0.3, "force_resample_every": None, "energy_scale": 1.0},
    )
    objective = PotentialObjective(data, config, data.split("train"), data.split("val"))
    chosen = objective._selection(0)
    assert chosen.sum() == round(0.3 * len(data.split("train")))
    train(data, config, tmp_path / "one", quiet)
    spoilt = np.where(
        np.repeat(chosen, np.diff(data.table.node_ptr))[:, None], data.arrays["forces"], 1e3
    )
    stress = np.where(chosen[:, None, None], data.arrays["stress"], 1e3)
    train(
        replace(data, arrays={"forces": spoilt, "stress": stress}), config, tmp_path / "two", quiet
    )
    losses = [[row["train_loss"] for row in history(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == losses[1]


def test_which_forces_count_is_drawn_anew_as_often_as_asked():
    data = pair_data(30)

    def drawn(**options):
        config = pair_config(potential={"force_fraction": 0.3, **options})
        objective = PotentialObjective(data, config, data.split("train"), data.split("val"))
        return [tuple(np.flatnonzero(objective._selection(epoch))) for epoch in range(6)]

    assert len(set(drawn())) > 3
    assert len(set(drawn(force_resample_every=None))) == 1
    every = drawn(force_resample_every=2)
    assert every[0] == every[1] != every[2] == every[3] != every[4] == every[5]
    assert all(len(rows) == 12 for rows in drawn(force_min_structures=12))


def test_the_sum_over_draws_of_forces_is_not_biased():
    """Over an epoch, shares of forces add up to one, however few are drawn."""
    data = pair_data(30)
    config = pair_config(potential={"force_fraction": 0.2}, batch={"structures": 4})
    objective = PotentialObjective(data, config, data.split("train"), data.split("val"))
    from atomloom.data.loader import GraphLoader

    loader = GraphLoader(data.table, data.split("train"), data.targets, config.training.batch)
    used = objective._selection(3)
    numbers = 3.0 * np.diff(data.table.node_ptr)
    counts = objective.counts(loader, 3)
    assert counts[:, 1].sum() == pytest.approx((numbers * used).sum())
    assert np.allclose(counts[:, 0], np.diff(loader.plan(3).ptr))


def test_unknown_energies_and_forces_are_left_out(tmp_path, monkeypatch):
    use_pair_model(monkeypatch)
    data = pair_data(20)
    data.arrays["forces"][data.table.node_ptr[3] : data.table.node_ptr[4]] = np.nan
    data.arrays["stress"][5] = np.nan
    result = train(data, pair_config(epochs=2), tmp_path, quiet)
    assert np.isfinite(list(result.best_val_mae.values())).all()


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)])
def test_the_error_of_stress_counts_each_component_once(rows):
    """The history means what `metrics.json` does; the loss still counts both `yz` and `zy`."""
    data = pair_data(8)
    data.arrays["stress"][data.split("train")[0]] = np.nan
    data.arrays["stress"][data.split("train")[1], 0, 0] = np.nan
    val = data.split("train")[:5][rows]
    objective = PotentialObjective(data, pair_config(), data.split("train"), val)
    labels = objective.labels(training=False)
    loader = data.loader(
        val,
        labels.targets,
        Batching(structures=2),
        dtype=torch.float64,
        of_atoms=labels.of_atoms,
        of_structures=labels.of_structures,
    )
    model = PairModel().double()
    scale = objective.scaler.scale
    wrong = np.concatenate([objective.evaluate(model, b).stress.detach() for b in loader]) * scale
    wrong -= data.arrays["stress"][val]
    found = objective.validate(model, loader, open_fabric(pair_config().training, quiet))
    mae = dict(zip(objective.names, found.maes, strict=True))["stress"]
    if np.isfinite(wrong).any():
        assert mae == pytest.approx(np.nanmean(np.abs(wrong[:, *np.triu_indices(3)])))
        assert mae != pytest.approx(np.nanmean(np.abs(wrong)))
    else:
        assert np.isnan(mae)


def test_a_killed_force_training_resumes_to_the_same_bits(tmp_path, monkeypatch):
    use_pair_model(monkeypatch)
    data = pair_data(24)
    config = pair_config(
        epochs=3,
        ema_decay=0.9,
        batch={"structures": 4},
        potential={"force_fraction": 0.5},
        checkpoint_minutes=1e-9,
    )
    train(data, config, tmp_path / "whole", quiet)
    for step in (3, 4):
        with monkeypatch.context() as patch:
            kill_at(patch, "_seed_noise", step)
            with pytest.raises(Killed):
                train(data, config, tmp_path / "parts", quiet)
    train(data, config, tmp_path / "parts", quiet)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_shares_are_one_over_the_counts_of_the_whole_step():
    counts = np.array([[2.0, 10.0], [3.0, 0.0], [4.0, 5.0]])
    shares = step_shares(counts, accumulate=2, ranks=1)
    assert np.allclose(shares, [[1 / 5, 1 / 10], [1 / 5, 1 / 10], [1 / 4, 1 / 5]])
    assert np.allclose(step_shares(counts, 2, 3), 3 * shares)


# --- references ---


def test_reference_energies_are_found_and_added_back():
    data = pair_data(30)
    rows = np.arange(30)
    energies = data.targets[:, 0]
    for options in ({}, {"reference_energies": {"Li": -200.0, "F": -650.0}}):
        settings = PotentialTraining(**options)
        reference = AtomicEnergies.fit(settings, data.table, energies, rows, data.arrays["forces"])
        reduced = reference.reduced(data.table, energies)
        assert np.abs(reduced).max() < 100, "only bonds are left"
        back = reduced * reference.scale + reference.offsets(data.table)
        np.testing.assert_allclose(back, energies, rtol=1e-14)
        assert reference.scale == pytest.approx(np.sqrt(np.mean(data.arrays["forces"] ** 2)))
    for number, energy in OFFSETS.items():
        assert reference.element_energies[number] == energy


def test_range_normalisation_is_that_of_aenet():
    data = pair_data(30)
    settings = PotentialTraining(
        energy_scale="range", reference_energies={"Li": -200.0, "F": -650.0}
    )
    energies, rows = data.targets[:, 0], np.arange(30)
    reference = AtomicEnergies.fit(settings, data.table, energies, rows)
    normalised = reference.reduced(data.table, energies) / np.diff(data.table.node_ptr)
    assert normalised.min() == pytest.approx(-1.0)
    assert normalised.max() == pytest.approx(1.0)


def test_a_reference_survives_its_file():
    data = pair_data(10)
    reference = AtomicEnergies.fit(
        PotentialTraining(), data.table, data.targets[:, 0], np.arange(10), data.arrays["forces"]
    )
    again = AtomicEnergies.from_dict(reference.to_dict())
    assert np.array_equal(again.element_energies, reference.element_energies, equal_nan=True)
    assert (again.shift, again.scale) == (reference.shift, reference.scale)


def test_elements_without_reference_are_named():
    data = pair_data(10)
    energies, rows = data.targets[:, 0], np.arange(10)
    settings = PotentialTraining(reference_energies={"Li": -200.0})
    with pytest.raises(AtomloomError, match="no energy of F"):
        AtomicEnergies.fit(settings, data.table, energies, rows)
    reference = AtomicEnergies.fit(PotentialTraining(), data.table, energies, rows)
    with pytest.raises(AtomloomError, match="not trained on Na"):
        reference.require_elements(np.array([3, 11]))


# --- config ---


@pytest.mark.parametrize(
    ("target", "training", "message"),
    [
        (["forces"], {}, "energy first"),
        (["energy", "band_gap"], {}, "energy first"),
        (["energy"], {"loss": "bce"}, "not for painn"),
    ],
)
def test_targets_that_no_potential_learns_are_refused(target, training, message):
    with pytest.raises(AtomloomError, match=message):
        parse_config(
            {
                "dataset": {"name": "x", "source": ["x"], "target": target},
                "model": {"name": "painn"},
                "training": training,
            }
        )


# --- L-BFGS ---


@pytest.mark.parametrize("threads", [1, 3])
def test_lbfgs_learns_a_pair_potential_in_few_epochs(tmp_path, monkeypatch, threads):
    use_pair_model(monkeypatch)
    data = pair_data()
    config = pair_config(epochs=12, optimizer="lbfgs", batch={"structures": 5}, threads=threads)
    result = train(data, config, tmp_path, quiet)
    assert result.best_val_mae["forces"] < 1e-3 * np.abs(data.arrays["forces"]).mean()


def test_lbfgs_gives_the_same_bits_by_any_number_of_threads_and_when_resumed(tmp_path, monkeypatch):
    use_pair_model(monkeypatch)
    data = pair_data(24)
    options = {"optimizer": "lbfgs", "epochs": 4, "batch": {"structures": 4}}
    options |= {
        "checkpoint_minutes": 1e-9,
        "potential": {"force_fraction": 0.5, "force_resample_every": None},
    }
    train(data, pair_config(threads=1, **options), tmp_path / "one", quiet)
    config = pair_config(threads=2, **options)
    train(data, config, tmp_path / "two", quiet)
    for call in (2, 3):
        with monkeypatch.context() as patch:
            kill_at(patch, "progress_line", call)
            with pytest.raises(Killed):
                train(data, config, tmp_path / "parts", quiet)
    train(data, config, tmp_path / "parts", quiet)
    assert_equal_runs(tmp_path / "one", tmp_path / "two")
    assert_equal_runs(tmp_path / "one", tmp_path / "parts")


# --- which structures come how often ---


def rows_seen(monkeypatch, data, config, folder) -> list[int]:
    """Rows of all batches of a training, in order."""
    seen = []
    genuine = PotentialObjective.sums

    def noting(self, output, batch):
        seen.extend(batch.rows.tolist())
        return genuine(self, output, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PotentialObjective, "sums", noting)
        train(data, config, folder, quiet)
    return seen


def test_structures_of_low_energy_come_more_often(tmp_path, monkeypatch):
    use_pair_model(monkeypatch)
    data = pair_data(40)
    options = {"sampling": "energy", "sampling_temperature": 0.3}
    seen = rows_seen(monkeypatch, data, pair_config(epochs=20, potential=options), tmp_path)
    rows = data.split("train")
    counts = np.bincount(seen, minlength=40)[rows]
    config = pair_config(potential=options)
    objective = PotentialObjective(data, config, rows, data.split("val"))
    weights = objective._sampling_weights(0)[rows]
    expected = 20 * len(rows) * weights / weights.sum()
    assert counts.sum() == 20 * len(rows)
    assert np.abs(counts - expected).max() <= 20
    assert counts[weights.argmax()] > 2 * counts[weights.argmin()]


def test_structures_with_large_errors_come_more_often(tmp_path, monkeypatch):
    use_pair_model(monkeypatch)
    data = pair_data(40)
    odd = int(data.split("train")[3])
    data.targets[odd] += 30.0 * len(data.table[odd].numbers)  # never learnt
    config = pair_config(epochs=6, potential={"sampling": "error"})
    seen = rows_seen(monkeypatch, data, config, tmp_path)
    counts = np.bincount(seen, minlength=40)
    assert counts[odd] == counts.max() > 3 * np.median(counts[data.split("train")])


def test_sampling_by_errors_resumes_to_the_same_bits(tmp_path, monkeypatch):
    use_pair_model(monkeypatch)
    data = pair_data(24)
    options = {"batch": {"structures": 4}, "checkpoint_minutes": 1e-9}
    config = pair_config(epochs=4, potential={"sampling": "error"}, **options)
    train(data, config, tmp_path / "whole", quiet)
    for step in (7, 4):
        with monkeypatch.context() as patch:
            kill_at(patch, "_seed_noise", step)
            with pytest.raises(Killed):
                train(data, config, tmp_path / "parts", quiet)
    train(data, config, tmp_path / "parts", quiet)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_structures_larger_than_a_batch_may_be_are_named(tmp_path, monkeypatch):
    use_pair_model(monkeypatch)
    data, lines = pair_data(12), []
    train(data, pair_config(epochs=1, batch={"atoms": 3}), tmp_path, lines.append)
    rows = data.split("train")
    large = int((np.diff(data.table.node_ptr)[rows] > 3).sum())
    assert 0 < large < len(rows)
    assert any(line.startswith(f"{large} structures exceed") for line in lines)


def test_errors_that_structures_are_drawn_by_are_those_of_an_atom():
    """A large structure whose atoms are as wrong as a small one's comes as often."""
    data = pair_data(24)
    config = pair_config(["energy"], potential={"sampling": "error"})
    train_rows = data.split("train")
    objective = PotentialObjective(data, config, train_rows, data.split("val"))
    labels = objective.labels(training=True)
    counts = np.diff(data.table.node_ptr)
    rows = np.array([next(r for r in train_rows if counts[r] == n) for n in (2, 5)])
    (batch,) = data.loader(rows, labels.targets, config.training.batch)
    atoms = batch.node_ptr.diff()
    energy = batch.targets[:, 0] + 0.25 * atoms * torch.tensor([1.0, -1.0])
    objective.sums(PotentialOutput(torch.zeros(len(batch.numbers)), energy), batch)
    drawn = labels.sampling_weights(1)[rows]
    assert drawn[0] == pytest.approx(drawn[1])


def test_forces_or_stress_of_a_structure_without_energy_are_learnt(tmp_path, monkeypatch):
    use_pair_model(monkeypatch)
    data = pair_data(24)
    train_rows, val_rows = data.split("train"), data.split("val")
    forces_alone, stress_alone, nothing = (int(row) for row in train_rows[:3])
    data.targets[[forces_alone, stress_alone, nothing]] = np.nan
    data.targets[val_rows] = np.nan
    data.arrays["stress"][[forces_alone, nothing]] = np.nan
    for row in (stress_alone, nothing):
        data.arrays["forces"][slice(*data.table.node_ptr[row : row + 2])] = np.nan
    seen = rows_seen(monkeypatch, data, pair_config(epochs=1), tmp_path)
    assert sorted(seen) == sorted(set(train_rows.tolist()) - {nothing})
    (row,) = history(tmp_path)
    assert np.isfinite([row["val_loss"], row["val_mae_forces"], row["val_mae_stress"]]).all()
    assert np.isnan(row["val_mae_energy_per_atom"])
