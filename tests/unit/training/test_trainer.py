"""What the training loop promises: steps, validation, precision, stopping."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from atomloom.data.dataset import LabelledGraphs
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.inference.metrics import class_metrics
from atomloom.inference.predict import load_model, predict_table
from atomloom.training import trainer
from atomloom.training.batch_norm import statistics_of_this_batch
from atomloom.training.checkpoint import load_state
from atomloom.training.objectives.base import Scores
from atomloom.training.objectives.property import PropertyObjective
from atomloom.training.trainer import train
from tests.unit.training.runs import (
    SumModel,
    WatchedModel,
    history,
    small_config,
    small_data,
    use_sum_model,
)


def weights(run):
    return load_file(run / "model.safetensors")


def quiet(_):
    """Take no notice."""


def test_training_learns(tmp_path, monkeypatch):
    use_sum_model(monkeypatch)
    data = small_data(240)
    config = small_config(epochs=30, learning_rate=0.02)
    result = train(data, config, tmp_path, quiet)
    spread = np.abs(
        data.targets[data.split("val")] - data.targets[data.split("train")].mean()
    ).mean()
    assert result.best_val_mae["target0"] < 0.4 * spread
    assert result.epochs_run == 30
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    assert min(row["val_mae"] for row in rows) == result.best_val_mae["target0"]


def test_the_model_file_is_the_best_epoch(tmp_path):
    data, config = small_data(), small_config(epochs=4, learning_rate=0.05)
    result = train(data, config, tmp_path, quiet)
    rows = data.split("val")
    predicted = predict_table(load_model(tmp_path / "model.safetensors"), data.table, rows)
    error = np.abs(predicted - data.targets[rows]).mean()
    assert error == pytest.approx(result.best_val_mae["target0"], rel=1e-6)
    assert result.best_val_mae["target0"] == min(row["val_mae"] for row in history(tmp_path))


def test_nothing_is_dropped_from_validation(tmp_path, monkeypatch):
    """Not the last batch, not a batch of one, not a structure of one atom."""
    built = use_sum_model(monkeypatch)
    data = small_data(60)
    config = small_config(epochs=1, batch={"structures": 3, "atoms": 9})
    seen = []
    forward = SumModel.forward

    def spy(self, batch):
        if not self.training:
            seen.extend(batch.rows.tolist())
        return forward(self, batch)

    monkeypatch.setattr(SumModel, "forward", spy)
    result = train(data, config, tmp_path, quiet)
    assert sorted(seen) == sorted(data.split("val").tolist())
    model = load_model(tmp_path / "model.safetensors")
    one_by_one = np.concatenate(
        [predict_table(model, data.table, [row]) for row in data.split("val")]
    )
    error = np.abs(one_by_one - data.targets[data.split("val")]).mean()
    assert error == pytest.approx(result.best_val_mae["target0"], rel=1e-6)
    assert built


def test_a_short_training_is_evaluated_with_meaningful_statistics(tmp_path):
    """Not with running variances that still are mostly the 1 they started from."""
    data = small_data(80)
    train(data, small_config(epochs=1, batch={"structures": 16}), tmp_path, quiet)
    model = load_model(tmp_path / "model.safetensors").model
    seen = {}
    norms = [(n, m) for n, m in model.named_modules() if hasattr(m, "running_var")]
    loader = GraphLoader(data.table, data.split("train"))
    before = {name: norm.running_var.clone() for name, norm in norms}
    with torch.no_grad(), statistics_of_this_batch(model):
        model.train()(next(iter(loader)))
    seen = {name: (before[name] / norm.running_var).log10().abs().median() for name, norm in norms}
    assert max(seen.values()) < 0.5, seen


def test_a_validation_set_of_one_lone_atom_is_validated(tmp_path):
    data = small_data(40)
    lone = np.flatnonzero((np.diff(data.table.node_ptr) == 1) & (np.diff(data.table.edge_ptr) > 0))
    others = np.setdiff1d(np.arange(40), lone[:1])
    data = LabelledGraphs(data.table, data.targets, {"train": others, "val": lone[:1]})
    result = train(data, small_config(epochs=1), tmp_path, quiet)
    assert np.isfinite(result.best_val_mae["target0"])


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_accumulation_equals_the_big_batch(tmp_path, monkeypatch, loss):
    use_sum_model(monkeypatch)
    data = small_data(51, targets=2)
    data.targets[data.split("train")[:7], 0] = np.nan
    options = {"targets": 2, "epochs": 4, "precision": "64", "loss": loss, "clip_norm": 0.5}
    train(data, small_config(batch={"structures": 12}, **options), tmp_path / "big", quiet)
    train(
        data,
        small_config(batch={"structures": 3}, accumulate=4, **options),
        tmp_path / "small",
        quiet,
    )
    big, small = weights(tmp_path / "big"), weights(tmp_path / "small")
    for name in big:
        torch.testing.assert_close(small[name], big[name], rtol=1e-9, atol=1e-11)
    for one, other in zip(history(tmp_path / "big"), history(tmp_path / "small"), strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_unknown_targets_change_nothing(tmp_path, monkeypatch):
    """A structure whose target is unknown leaves the training as if it were not there."""
    use_sum_model(monkeypatch)
    data = small_data(36, targets=2)
    data.targets[5] = np.nan
    train(data, small_config(targets=2), tmp_path / "with", quiet)
    rows = {name: rows[rows != 5] for name, rows in data.rows.items()}
    without = LabelledGraphs(data.table, data.targets, rows)
    train(without, small_config(targets=2), tmp_path / "without", quiet)
    assert history(tmp_path / "with") == history(tmp_path / "without")


def test_two_runs_are_equal_to_the_bit(tmp_path):
    data, config = small_data(24), small_config(threads=2, epochs=1)
    for name in ("one", "other"):
        train(data, config, tmp_path / name, quiet)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert history(tmp_path / "one") == history(tmp_path / "other")


def test_settings_that_change_no_result_change_no_result(tmp_path):
    data = small_data()
    train(data, small_config(), tmp_path / "one", quiet)
    train(data, small_config(prefetch=0, checkpoint_minutes=1e-6), tmp_path / "other", quiet)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_seed_changes_the_run(tmp_path):
    data = small_data()
    for seed in (0, 1):
        train(data, small_config(seed=seed), tmp_path / str(seed), quiet)
    assert history(tmp_path / "0") != history(tmp_path / "1")


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path, monkeypatch):
    class Bad(WatchedModel):
        def forward(self, batch):
            out = super().forward(batch)
            if self.training and len(self.seen) == 6:
                out = out * float("nan")
            return out

    use_sum_model(monkeypatch, Bad)
    config = small_config(epochs=4, batch={"structures": 8}, checkpoint_minutes=1e-9)
    with pytest.raises(AtomloomError, match=r"epoch 2, batch 1 .*rows"):
        train(small_data(), config, tmp_path, quiet)
    state = torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())
    assert not (tmp_path / "state" / "finished.json").exists()


def test_a_run_that_diverges_stops(tmp_path, monkeypatch):
    use_sum_model(monkeypatch)
    config = small_config(epochs=50, learning_rate=10.0, optimizer="sgd", scheduler="constant")
    with pytest.raises(AtomloomError, match="finite"):
        train(small_data(), config, tmp_path, quiet)


def test_bf16_computes_in_bf16_without_a_scaler_on_vectors_of_32_bits(tmp_path, monkeypatch):
    built = use_sum_model(monkeypatch, WatchedModel)
    train(small_data(), small_config(epochs=1, precision="bf16-mixed"), tmp_path, quiet)
    (model,) = built
    assert set(model.seen) == {(torch.float32, torch.bfloat16)}
    state = torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)
    assert state["scaler"] == {}
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}


def test_64_bits_are_64_bits_throughout(tmp_path, monkeypatch):
    built = use_sum_model(monkeypatch, WatchedModel)
    train(small_data(), small_config(epochs=1, precision="64"), tmp_path, quiet)
    assert set(built[0].seen) == {(torch.float64, torch.float64)}
    assert load_model(tmp_path / "model.safetensors").dtype == torch.float64


@pytest.mark.parametrize(("precision", "instead"), [("tf32", "use 32"), ("fp16-mixed", "bf16")])
def test_a_precision_the_device_has_not_got_is_refused_by_name(tmp_path, precision, instead):
    with pytest.raises(AtomloomError, match=f"{precision} needs .*{instead}"):
        train(small_data(), small_config(precision=precision), tmp_path, quiet)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said_so(tmp_path):
    with pytest.raises(AtomloomError, match="no CUDA device"):
        train(small_data(), small_config(device="cuda"), tmp_path, quiet)


def test_training_leaves_torch_as_it_was(tmp_path):
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
    )
    train(small_data(), small_config(epochs=1, precision="64"), tmp_path, quiet)
    assert before == (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
    )


def test_early_stopping_stops(tmp_path, monkeypatch):
    use_sum_model(monkeypatch)
    config = small_config(
        epochs=200, early_stopping=3, learning_rate=0.3, scheduler="constant", optimizer="sgd"
    )
    lines = []
    result = train(small_data(), config, tmp_path, lines.append)
    assert result.stopped_early
    assert result.epochs_run < 200
    errors = [row["val_mae"] for row in history(tmp_path)]
    assert len(errors) == int(np.argmin(errors)) + 1 + 3
    assert lines[-1] == "stopped: no lower validation error for 3 epochs"


@pytest.mark.parametrize("options", [{"early_stopping": 2}, {"scheduler": "plateau"}])
def test_what_needs_validation_rows_says_so(tmp_path, options):
    data = small_data()
    data = LabelledGraphs(data.table, data.targets, {"train": data.split("train")})
    with pytest.raises(AtomloomError, match="needs a validation set"):
        train(data, small_config(**options), tmp_path, quiet)


def test_without_validation_rows_the_last_epoch_is_kept(tmp_path):
    data = small_data()
    data = LabelledGraphs(data.table, data.targets, {"train": data.split("train")})
    result = train(data, small_config(), tmp_path, quiet)
    assert result.best_epoch == 3
    assert result.best_val_mae == {"target0": None}
    state = torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)
    saved = weights(tmp_path)
    assert all(torch.equal(saved[name], state["model"][name]) for name in saved)


def test_weights_decay_but_norms_and_biases_do_not(tmp_path):
    from atomloom.models import build_model
    from atomloom.training.optim.optimizers import build_optimizer

    config = small_config(weight_decay=0.1)
    model = build_model(config.model, 1)
    decaying, exempt = build_optimizer(model, config.training).param_groups
    assert (decaying["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in exempt["params"]:
        name = names[id(parameter)]
        assert name.endswith("bias") or re.search(r"bn|norm", name), name
    assert len(decaying["params"]) + len(exempt["params"]) == len(names)


def test_the_moving_average_is_what_is_evaluated(tmp_path):
    data = small_data()
    train(data, small_config(ema_decay=0.95), tmp_path, quiet)
    state = torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)
    saved = weights(tmp_path)
    if state["best"]["epoch"] == 3:
        assert all(torch.equal(saved[name], state["average"][name]) for name in saved)
    differing = [n for n in saved if not torch.equal(state["average"][n], state["model"][n])]
    assert differing, "the average is not the last weights"


def test_log_targets_are_learnt_as_logarithms_and_predicted_in_real_units(tmp_path, monkeypatch):
    use_sum_model(monkeypatch)
    data = small_data(120)
    positive = np.exp(data.targets / np.abs(data.targets).max())
    data = LabelledGraphs(data.table, positive, data.rows)
    config = small_config(epochs=10, learning_rate=0.02, log_targets=["target0"])
    result = train(data, config, tmp_path, quiet)
    rows = data.split("val")
    predicted = predict_table(load_model(tmp_path / "model.safetensors"), data.table, rows)
    assert (predicted > 0).all()
    error = np.abs(predicted - positive[rows]).mean()
    assert error == pytest.approx(result.best_val_mae["target0"], rel=1e-6)


def test_classes_are_learnt_as_probabilities(tmp_path, monkeypatch):
    use_sum_model(monkeypatch)
    data = small_data(240)
    classes = (data.targets > np.median(data.targets)).astype(float)
    classes[data.split("train")[:5]] = np.nan
    data = LabelledGraphs(data.table, classes, data.rows)
    config = small_config(epochs=30, learning_rate=0.02, loss="bce")
    train(data, config, tmp_path, quiet)
    rows = data.split("test")
    predicted = predict_table(load_model(tmp_path / "model.safetensors"), data.table, rows)
    assert ((predicted > 0) & (predicted < 1)).all()
    assert class_metrics(classes[rows, 0], predicted[:, 0])["auc"] > 0.9
    losses = [row["val_loss"] for row in history(tmp_path)]
    best = torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)["best"]
    assert best["epoch"] == int(np.argmin(losses)) + 1


def test_compile_that_fails_falls_back_and_says_so(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler here\nmore lines")

    monkeypatch.setattr(torch, "compile", broken)
    data, lines = small_data(), []
    train(data, small_config(compile=True), tmp_path / "one", lines.append)
    assert "warning: torch.compile failed, continuing without it: no compiler here" in lines
    train(data, small_config(), tmp_path / "other", quiet)
    assert history(tmp_path / "one") == history(tmp_path / "other")


@pytest.mark.slow
# The compiler imports a module of torch that is written in torch's older way.
@pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")
def test_a_compiled_model_learns_the_same(tmp_path, monkeypatch):
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    use_sum_model(monkeypatch)
    data, lines = small_data(), []
    train(data, small_config(compile=True, precision="64"), tmp_path / "one", lines.append)
    assert not [line for line in lines if line.startswith("warning")]
    train(data, small_config(precision="64"), tmp_path / "other", quiet)
    for one, other in zip(history(tmp_path / "one"), history(tmp_path / "other"), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_progress_is_one_line_an_epoch(tmp_path):
    lines = []
    train(small_data(targets=2), small_config(targets=2), tmp_path, lines.append)
    epochs = [line for line in lines if line.startswith("epoch")]
    pattern = (
        r"epoch 2/3  train \S+  val MAE target0 \S+ eV \(best \S+\), target1 \S+ eV \(best \S+\)  "
        r"lr \S+  \S+ s \(data \d+ %\)  ETA \d+:\d\d"
    )
    assert len(epochs) == 3
    assert re.fullmatch(pattern, epochs[1])


def test_the_state_holds_no_pickled_classes(tmp_path):
    train(small_data(), small_config(), tmp_path, quiet)
    with torch.serialization.safe_globals([]):
        torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint" * 30, b"PK\x03\x04broken" * 30])
def test_a_damaged_state_is_one_clear_error(tmp_path, content):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(AtomloomError, match="cannot be read"):
        load_state(path, "key")


def test_a_run_folder_of_other_settings_is_refused(tmp_path):
    data = small_data()
    train(data, small_config(epochs=1), tmp_path, quiet)
    with pytest.raises(AtomloomError, match="other data or settings"):
        train(data, small_config(epochs=2), tmp_path, quiet)
    (tmp_path / "state" / "finished.json").unlink()
    with pytest.raises(AtomloomError, match="other data or settings"):
        train(data, small_config(epochs=2), tmp_path, quiet)


def test_a_finished_run_is_not_trained_again(tmp_path):
    data, config, lines = small_data(), small_config(), []
    first = train(data, config, tmp_path, quiet)
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert train(data, config, tmp_path, lines.append) == first
    assert lines == ["already trained"]
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before


def test_the_plateau_rule_looks_at_validation_and_not_at_training(tmp_path, monkeypatch):
    use_sum_model(monkeypatch)
    rising = iter(Scores(error, error, (error,)) for error in (1.0, 2.0, 3.0, 4.0))
    monkeypatch.setattr(PropertyObjective, "validate", lambda *arguments: next(rising))
    options = {"scheduler": "plateau", "plateau_patience": 0, "plateau_factor": 0.5}
    train(small_data(), small_config(epochs=4, learning_rate=0.02, **options), tmp_path, quiet)
    rows = history(tmp_path)
    losses = [row["train_loss"] for row in rows]
    assert losses == sorted(losses, reverse=True), "training falls"
    assert [row["learning_rate"] for row in rows] == [0.02, 0.02, 0.01, 0.005]


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_validation_uses_the_batch_statistics_of_the_first_process(
    tmp_path, monkeypatch, ema_decay
):
    """Each process has own running statistics; without the first one's, each would judge another model."""
    seen = []

    def from_another(fabric, tensors):
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.fill_(0.75)  # what the first process has

    def noting(self, forward, loader, fabric, genuine=PropertyObjective.validate):
        state = models[0].state_dict()
        names = [name for name in state if name.endswith(("running_mean", "running_var"))]
        seen.append([state[name].clone() for name in names])
        return genuine(self, forward, loader, fabric)

    models = []

    def keeping(*arguments, genuine=trainer.build_model):
        models.append(genuine(*arguments))
        return models[-1]

    monkeypatch.setattr(trainer, "build_model", keeping)
    monkeypatch.setattr(trainer, "share_from_first", from_another)
    monkeypatch.setattr(PropertyObjective, "validate", noting)
    train(small_data(), small_config(epochs=1, ema_decay=ema_decay), tmp_path, quiet)
    (statistics,) = seen
    assert statistics, "the model has batch norms"
    assert all(bool((tensor == 0.75).all()) for tensor in statistics)
