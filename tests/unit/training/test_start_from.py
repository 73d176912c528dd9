"""A training that starts from another model begins with its predictions, and trains what it is asked to."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from atomloom.config import parse_config
from atomloom.config.foundation import ARCHITECTURES
from atomloom.config.model import NequIPConfig
from atomloom.errors import AtomloomError
from atomloom.inference.model_file import read_model, weights_digest
from atomloom.inference.predict import load_model
from atomloom.models.derivatives import evaluate_potential
from atomloom.models.registry import build_model
from atomloom.training.fabric import open_fabric
from atomloom.training.trainer import Trainer, train
from tests.unit.potentials.models import write_potential
from tests.unit.training.direct import config_of, data_of, ionic_molecules
from tests.unit.training.runs import small_config, small_data
from tests.unit.training.test_resume import Killed, assert_equal_runs, kill_at, quiet

ENERGIES = ["energy", "forces"]


def trainer_of(data, config) -> Trainer:
    """A Trainer before its first step."""
    fabric = open_fabric(config.training, quiet)
    return Trainer(data, config, fabric, data.split("train"), data.split("val"), quiet)


@pytest.fixture(scope="module")
def potential(tmp_path_factory):
    """Model file of a small potential."""
    config = config_of(ENERGIES, epochs=2, batch={"structures": 8})
    folder = tmp_path_factory.mktemp("potential")
    train(data_of(ionic_molecules(24), config), config, folder, quiet)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def properties(tmp_path_factory):
    """Model file of a property model with batch norms."""
    folder = tmp_path_factory.mktemp("properties")
    train(small_data(), small_config(epochs=2), folder, quiet)
    return folder / "model.safetensors"


def test_before_the_first_step_forces_are_the_parents_and_energies_up_to_elements(potential):
    config = config_of(ENERGIES, start_from=str(potential))
    structures = ionic_molecules(20, seed=5)
    offsets = {3: -200.0, 9: -650.0, 8: -70.0, 12: 30.0}
    parent = load_model(potential)
    for one, energy in zip(structures, parent.predict(structures)[:, 0], strict=True):
        # Labels are the parent's own energies at another level of theory.
        one.properties["energy"] = np.float64(energy + sum(offsets[int(z)] for z in one.numbers))
    data = data_of(structures, config)
    trainer = trainer_of(data, config)
    own, theirs = trainer.objective.scaler, parent.card.scaler
    assert own.scale == theirs.scale
    found, wanted = trainer.model.state_dict(), parent.model.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    scores = trainer.validate(trainer.loader(data.split("val")))
    errors = dict(zip(trainer.objective.names, scores.maes, strict=True))
    energy = next(value for name, value in errors.items() if name.startswith("energy"))
    assert energy < 1e-4, "only offsets of elements differ"

    rows = data.split("val")
    (batch,) = data.loader(rows, bounds=config.training.batch)
    said = evaluate_potential(parent.model, batch, forces=True, stress=False).forces
    atoms = np.concatenate(
        [np.arange(*data.table.node_ptr[int(row) : int(row) + 2]) for row in batch.rows]
    )
    wrong = said.numpy() * theirs.scale - data.arrays["forces"][atoms]
    assert errors["forces"] == pytest.approx(np.abs(wrong).mean(), rel=1e-5)


def test_elements_that_compositions_do_not_tell_apart_keep_the_parents_energies(potential):
    config = config_of(ENERGIES, start_from=str(potential))
    structures = [one for one in ionic_molecules(200) if set(one.numbers.tolist()) == {3, 9}]
    assert len(structures) > 10
    parent = load_model(potential)
    for one, energy in zip(structures, parent.predict(structures)[:, 0], strict=True):
        one.properties["energy"] = np.float64(energy + 2.0 * len(one.numbers))
    own = trainer_of(data_of(structures, config), config).objective.scaler
    theirs = parent.card.scaler
    moved = (own.element_energies + own.shift) - (theirs.element_energies + theirs.shift)
    np.testing.assert_allclose(moved[[3, 9]], 2.0, atol=1e-4)


def test_a_target_of_another_name_starts_its_output_anew_and_the_log_says_so(properties, tmp_path):
    said = []
    config = small_config(epochs=1, start_from=str(properties), dataset={"target": ["other"]})
    train(small_data(), config, tmp_path / "other", said.append)
    (line,) = [line for line in said if line.startswith("starting from")]
    model = build_model(config.model, 1)
    wider = build_model(config.model, 2).state_dict()
    anew = [name for name, own in model.state_dict().items() if own.shape != wider[name].shape]
    assert anew
    assert line.endswith("anew: " + ", ".join(sorted(anew)))
    trainer, parent = trainer_of(small_data(), config), load_file(properties)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, parent[name]) == (name not in anew), name
    more = small_config(epochs=1, targets=2, start_from=str(properties))
    assert (
        trainer_of(small_data(targets=2), more)._told_of_parent[0].endswith(", ".join(sorted(anew)))
    )


def test_a_property_of_the_same_name_keeps_its_output_and_its_scale(properties, tmp_path):
    data = small_data(seed=3)
    config = small_config(start_from=str(properties))
    trainer, parent = trainer_of(data, config), load_model(properties)
    assert trainer._told_of_parent[0].endswith("all weights")
    np.testing.assert_array_equal(trainer.objective.scaler.mean, parent.card.scaler.mean)
    with pytest.raises(AtomloomError, match=r"target0 is in eV in .*, and in meV here"):
        trainer_of(data, small_config(start_from=str(properties), dataset={"unit": "meV"}))


def test_frozen_parts_do_not_change_and_the_others_do(properties, tmp_path):
    model = build_model(small_config().model, 1)
    norms = [
        n.removesuffix(".running_mean") for n, _ in model.named_buffers() if "running_mean" in n
    ]
    kept = norms[0]
    config = small_config(
        epochs=2,
        start_from=str(properties),
        freeze=[kept, "*bias"],
        ema_decay=0.9,
        weight_decay=0.1,
    )
    trainer = trainer_of(small_data(), config)
    frozen = {n for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert {n for n in frozen if not n.endswith("bias")}
    assert sum(len(g["params"]) for g in trainer.optimizer.param_groups) == len(trainer.trained)
    train(small_data(), config, tmp_path, quiet)
    parent, own = load_file(properties), load_file(tmp_path / "checkpoints" / "last.safetensors")
    same = {name for name in own if torch.equal(own[name], parent[name])}
    assert frozen <= same
    assert {f"{kept}.running_mean", f"{kept}.running_var"} <= same, "its statistics are kept, too"
    assert not any(f"{name}.running_mean" in same for name in norms[1:])
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(trained & same) < len(trained) / 4


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        (
            {"freeze": ["nothing"]},
            r"no parameters `nothing`; its first parts: (\S+, ){4}\S+ \.\.\.",
        ),
        ({"freeze": ["embeding"]}, "no parameters `embeding`; the nearest parts: atom_embedding"),
        ({"freeze": ["*"]}, "nothing is left to train"),
        ({"learning_rates": {"nothing": 2.0}}, "no parameters `nothing`"),
    ],
)
def test_parts_that_are_not_there_are_refused(properties, training, reason):
    with pytest.raises(AtomloomError, match=reason):
        trainer_of(small_data(), small_config(start_from=str(properties), **training))


def test_parts_with_their_own_rate_move_by_it(properties, tmp_path):
    options = {"optimizer": "sgd", "scheduler": "constant", "weight_decay": 0.0, "epochs": 1}
    options |= {"batch": {"structures": 1000}, "learning_rate": 1e-3, "start_from": str(properties)}
    moved = []
    first = next(name for name, _ in build_model(small_config().model, 1).named_parameters())
    for factor in (1.0, 0.5):
        folder = tmp_path / f"{factor}"
        train(small_data(), small_config(**options, learning_rates={first: factor}), folder, quiet)
        own, parent = load_file(folder / "checkpoints/last.safetensors"), load_file(properties)
        moved.append({n: own[n] - parent[n] for n in own if own[n].is_floating_point()})
    torch.testing.assert_close(moved[1][first], 0.5 * moved[0][first], rtol=1e-2, atol=1e-7)
    assert moved[0][first].any()


@pytest.mark.parametrize("kind", ["painn", "tensornet", "nequip"])
def test_frozen_parts_leave_the_gradients_of_the_others(kind, tmp_path):
    path = write_potential(tmp_path / "parent.safetensors", ("Li", "F", "O", "Mg"), kind=kind)
    _, card = read_model(path)
    config = config_of(ENERGIES, start_from=str(path))
    config = config.model_copy(update={"model": card.model, "graph": card.graph})
    data = data_of(ionic_molecules(8), config)
    found = []
    for freeze in ([], ["*embedding*", "*0.*"]):
        settings = config.training.model_copy(update={"freeze": freeze})
        trainer = trainer_of(data, config.model_copy(update={"training": settings}))
        trainer.model.train()
        loader = trainer.loader(data.split("train"), seed=0, shuffle=True)
        (batch, *_) = loader.batches(0)
        trainer.objective.begin(0, trainer.device)
        counts = len(trainer.objective.terms)
        trainer.micro_step(batch, torch.full((counts,), 0.1))
        found.append({n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert 0 < len(found[1]) < len(found[0])
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][name])


def test_a_killed_run_resumes_and_the_parent_is_in_what_it_is_known_by(
    properties, tmp_path, monkeypatch
):
    options = {"epochs": 3, "start_from": str(properties), "freeze": ["*bias"], "ema_decay": 0.9}
    config = small_config(**options, checkpoint_minutes=1e-9)
    train(small_data(), config, tmp_path / "whole", quiet)
    with monkeypatch.context() as patch:
        kill_at(patch, "_seed_noise", 7)
        with pytest.raises(Killed):
            train(small_data(), config, tmp_path / "killed", quiet)
    train(small_data(), config, tmp_path / "killed", quiet)
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    tensors, _ = read_model(properties)
    _, card = read_model(tmp_path / "whole" / "model.safetensors")
    assert card.facts["start_from"]["weights"] == weights_digest(tensors)
    other = small_config(**{**options, "start_from": str(tmp_path / "whole/model.safetensors")})
    with pytest.raises(AtomloomError, match="other data or settings"):
        train(small_data(), other, tmp_path / "killed", quiet)


def test_the_model_may_be_left_out_and_another_is_refused(properties, tmp_path):
    copied = shutil.copy(properties, tmp_path / "parent.safetensors")
    content = {
        "dataset": {"name": "test", "source": ["none"], "target": ["target0"], "unit": "eV"},
        "training": {"start_from": str(copied)},
    }
    assert parse_config(content).model == small_config().model
    assert parse_config(content).graph == read_model(properties)[1].graph
    for model, said in (
        ({"name": "icomformer", "width": 16, "layers": 2}, "model.width is 16, and 8 in"),
        ({"name": "alignn"}, "model.name is alignn, and icomformer in"),
    ):
        config = parse_config(content | {"model": model})
        with pytest.raises(AtomloomError, match=said):
            _ = config.start_model
    content["training"]["start_from"] = str(tmp_path / "nowhere.safetensors")
    with pytest.raises(AtomloomError, match=r"training\.start_from: there is no model file or run"):
        parse_config(content)
    (tmp_path / "text.safetensors").write_text("nothing")
    content["training"]["start_from"] = str(tmp_path / "text.safetensors")
    with pytest.raises(AtomloomError, match="damaged or not a model file"):
        parse_config(content)


def test_architectures_of_published_potentials_are_those_of_their_files():
    pytest.importorskip("sevenn")
    for name, own in ARCHITECTURES.items():
        assert NequIPConfig.model_validate(own) == load_model(name).card.model, name


def test_before_the_first_step_forces_are_those_of_a_published_potential():
    pytest.importorskip("sevenn")
    content = {
        "dataset": {"name": "test", "source": ["none"], "target": ENERGIES},
        "training": {"start_from": "sevennet-0", "batch": {"structures": 4}, "devices": 1},
    }
    config, parent = parse_config(content), load_model("sevennet-0")
    assert (config.model, config.graph) == (parent.card.model, parent.card.graph)
    data = data_of(ionic_molecules(10, seed=5), config)
    trainer, rows = trainer_of(data, config), data.split("val")
    scores = trainer.validate(trainer.loader(rows))
    (batch,) = data.loader(rows, bounds=config.training.batch)
    said = evaluate_potential(parent.model, batch, forces=True, stress=False).forces
    atoms = np.concatenate([np.arange(*data.table.node_ptr[row : row + 2]) for row in batch.rows])
    wrong = said.numpy() * parent.card.scaler.scale - data.arrays["forces"][atoms]
    found = dict(zip(trainer.objective.names, scores.maes, strict=True))["forces"]
    assert found == pytest.approx(np.abs(wrong).mean(), rel=1e-5)
    other = parse_config(content | {"model": {"name": "nequip", "layers": 3}})
    with pytest.raises(
        AtomloomError, match=r"model\.features is \[64, 64, 64\], and \[128, 64, 32\]"
    ):
        _ = other.start_model


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"freeze": ["embedding"]}, "freeze is for start_from"),
        (
            {"start_from": "a", "potential": {"energy_scale": "energy"}},
            "energy scale is that model's",
        ),
        ({"optimizer": "lbfgs", "learning_rates": {"a": 1.0}}, "no learning rates"),
    ],
)
def test_options_that_contradict_each_other_are_refused(training, reason):
    with pytest.raises(AtomloomError, match=reason):
        small_config(**training)
