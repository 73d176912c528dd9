"""The Trainer: labelled graphs and a config in, a model file and a history out.

`train` is the entry point. `Trainer.fit` is a run: resume, then epochs of optimiser steps, each validated
and recorded. Everything a step does is a function of (seed, epoch, batch), so the state of a run
(`TrainState`) is small, and a run that was killed resumes as if it had not been. It knows nothing of
Snakemake, of the origin of data, or of targets and losses, which belong to its objective.

Legend: L terms of the loss; `batch_idx` counts the batches of an epoch, `step` optimiser steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import LBFGS

from atomloom.config.foundation import model_behind
from atomloom.config.model import TabularSection
from atomloom.config.root import Config, direct_kinds
from atomloom.config.start_model import data_behind
from atomloom.config.training import Batching, Training
from atomloom.data.batch import GraphBatch
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.loader import Loader
from atomloom.errors import AtomloomError
from atomloom.inference.devices import arithmetic, device_name
from atomloom.inference.global_features import GLOBALS
from atomloom.inference.model_file import ModelCard, read_model, write_model
from atomloom.models.registry import build_model, require_elements, require_sizes
from atomloom.models.tabular.base import TabularModel
from atomloom.store.files import file_digest, read_json, write_sealed
from atomloom.store.keys import TRAINER, short_hash
from atomloom.training.batch_norm import statistics_of_this_batch
from atomloom.training.checkpoint import (
    CheckpointTimer,
    load_state,
    save_state,
    termination_noticed,
)
from atomloom.training.clock import Clock
from atomloom.training.compile import compiled_model
from atomloom.training.cuda_graphs import RecordedSteps, records_steps
from atomloom.training.distributed import full_state, shard_model, summed, unsharded
from atomloom.training.fabric import (
    Network,
    Sealed,
    close_fabric,
    exchanging,
    open_fabric,
    share_from_first,
)
from atomloom.training.failures import (
    TakenOver,
    check_finite,
    check_validation,
    diverged,
    predicts_nothing,
    stopped,
    taken_over,
)
from atomloom.training.inherited import ParentModel
from atomloom.training.logging.history import History, progress_line
from atomloom.training.logging.loggers import open_loggers
from atomloom.training.objectives.base import Objective, Scores, step_shares
from atomloom.training.objectives.build import build_objective
from atomloom.training.optim.ema import MovingAverage
from atomloom.training.optim.full_batch import FullBatch
from atomloom.training.optim.optimizers import build_optimizer, set_rate
from atomloom.training.optim.schedules import Schedule
from atomloom.training.parts import freeze
from atomloom.training.run_lock import PAUSE, alone
from atomloom.training.tabular import Fit, fit_table
from atomloom.training.train_state import Best, TrainState, state_digest

FINISHED = Path("state") / "finished.json"
"""Result of a finished run, in its folder."""
Log = Callable[[str], None]

AGREE_STEPS = 20  # between two agreements of several processes on whether to save
CUDA_CHECK_STEPS = 50  # reading a loss synchronises the GPU; on the CPU every step is checked


@dataclass(frozen=True)
class TrainResult:
    """Summary of a finished training run."""

    parameters: int
    """Number of trained weights."""
    epochs_run: int
    """Number of epochs done, all calls together."""
    best_epoch: int
    """Epoch (from 1) whose weights are in the model file."""
    best_val_mae: dict[str, float | None]
    """Validation MAE of that epoch by target in real units; None without validation rows."""
    steps: int
    """Number of optimiser steps, all calls together."""
    stopped_early: bool
    """Whether early stopping ended the run."""
    seconds: float
    """Time of training and validation, all calls together."""
    device: str
    """`cpu`, or the GPU's name."""
    threads: int
    """CPU threads of the last call."""
    rank: int = 0
    """Rank of this process; the first one reports."""


@dataclass(frozen=True)
class Start:
    """Last state of a run, for another run that continues it."""

    state: Path
    """File of the state."""
    key: str | None
    """Key under which it was saved; None if that is not known."""
    digest: str
    """Digest of its content, or of its file."""
    processes: int = 1
    """Number of processes that trained it."""


@overload
def train(
    data: LabelledGraphs,
    config: Config,
    run_dir: str | Path,
    log: Log = ...,
    until: None = ...,
    start: Start | None = ...,
) -> TrainResult: ...


@overload
def train(
    data: LabelledGraphs,
    config: Config,
    run_dir: str | Path,
    log: Log = ...,
    *,
    until: int | None,
    start: Start | None = ...,
) -> TrainResult | None: ...


def train(
    data: LabelledGraphs,
    config: Config,
    run_dir: str | Path,
    log: Log = print,
    until: int | None = None,
    start: Start | None = None,
) -> TrainResult | None:
    """Train the config's model, or resume its training; a finished run is only reported.

    Writes `model.safetensors` (the best epoch by validation error), `history.csv`, the state for
    resuming under `state/`, and model files of the last and other epochs under `checkpoints/` into the
    run's folder, each in one step.

    Args:
        data: graphs, targets in real units, splits.
        config: the whole config; `model`, `training`, `graph` and `dataset.target` matter.
        run_dir: the run's folder, for this config and these data only.
        log: takes one line at a time.
        until: stop after this epoch, as a run that is resumed later; nothing is returned then.
        start: last state of another run, which this one continues.

    Raises:
        AtomloomError: when the device or precision is not available, a target cannot be learnt, the
            state is of another run or damaged, or the loss is no longer a finite number.
    """
    run_dir = Path(run_dir)
    key = _run_digest(data, config, start)
    if (trained := _already_trained(run_dir, key)) is not None:
        log("already trained")
        return trained
    fabric = open_fabric(_settings_of_devices(config), log)
    if not fabric.is_global_zero:
        log = _say_nothing
    with (
        exchanging(fabric, run_dir),
        _alone_with(fabric, run_dir, log) as taken_by,
        arithmetic(config.training, fabric.device.type),
        _asked_to_stop(config) as asked_to_stop,
    ):
        train_rows = rows_with_targets(data, "train", log)
        val_rows = rows_with_targets(data, "val", log)
        check_validation(config.training, len(val_rows))
        trainer = _trainer_of(config)(data, config, fabric, train_rows, val_rows, log)
        try:
            result = trainer.fit(run_dir, key, asked_to_stop, taken_by, until, start)
        except TakenOver as error:
            log(str(error))
            result = _trained_by_other(run_dir, key, asked_to_stop, until)
        else:
            if result is not None and fabric.is_global_zero:
                _note_finished(run_dir, key, result)
        close_fabric(fabric)
    return None if result is None else replace(result, rank=fabric.global_rank)


@contextmanager
def _alone_with(fabric: Fabric, run_dir: Path, log: Log) -> Iterator[Callable[[], str]]:
    """Hold the lock of a run by the first of all processes, while the others wait for it.

    They hear from it all the time, since a process that waits too long for another gives up. Yields a function
    that tells the first who has taken the run over; empty if nobody has.
    """
    if fabric.is_global_zero:
        with alone(run_dir, log, waiting=lambda: fabric.broadcast(True)) as hold:
            fabric.broadcast(False)
            yield hold.taken_by
        return
    while fabric.broadcast(True):
        pass
    yield lambda: ""


def _note_finished(run_dir: Path, key: str, result: TrainResult) -> None:
    """Write the result of a run that has come to its end."""
    state = load_state(run_dir / "state" / "last.ckpt", key)
    history = file_digest(run_dir / "history.csv")
    own = {"key": key, "result": asdict(result), "history": history}
    write_sealed(run_dir / FINISHED, own | ({"state": state_digest(state)} if state else {}))


def _trained_by_other(
    run_dir: Path, key: str, asked_to_stop: Callable[[], int], until: int | None
) -> TrainResult | None:
    """Wait for the process that has taken the run over, and return its result; None for a run until an epoch.

    Raises:
        AtomloomError: when asked to stop meanwhile.
    """
    while True:
        if (result := _already_trained(run_dir, key)) is not None:
            return result
        if until is not None:
            saved = load_state(run_dir / "state" / "last.ckpt", key)
            if saved is not None and saved["epoch"] >= until:
                return None
        if by := asked_to_stop():
            raise stopped(run_dir, by)
        time.sleep(PAUSE)


def _already_trained(run_dir: Path, key: str) -> TrainResult | None:
    """Result of a finished run whose files are whole; None if there is something to train.

    Raises:
        AtomloomError: when it is a run with other data or settings.
    """
    finished, history = run_dir / FINISHED, run_dir / "history.csv"
    if not finished.exists():
        return None
    content = read_json(finished, "key", "result", "history", todo=f"remove {finished.parent}")
    if content["key"] != key:
        raise AtomloomError(
            "is a finished run with other data or settings", where=run_dir, todo="remove it"
        )
    if not _is_whole(run_dir / "model.safetensors"):
        # The result was removed or damaged: a training is requested, not its last state.
        finished.unlink()
        (run_dir / "state" / "last.ckpt").unlink(missing_ok=True)
    elif history.exists() and file_digest(history) == content["history"]:
        return TrainResult(**content["result"])
    return None


def _is_whole(model: Path) -> bool:
    """Whether a model file exists and is intact."""
    try:
        read_model(model)
    except AtomloomError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class Epoch:
    """Quantities for the steps of an epoch."""

    counts: np.ndarray
    """[batches, L] counts of the sums of the loss, all processes together."""
    shares: Tensor
    """[batches, L] factors of the sums: one over the counts of a whole step."""
    loss_scale: float
    """Loss scale of fp16 at the start of the epoch."""
    begun: float
    """Start of the epoch, by `time.perf_counter`."""


class Trainer:
    """Trainer of a network: everything a step needs, and the run that takes the steps.

    Args:
        data: graphs, targets in real units, splits.
        config: the whole config.
        fabric: device, precision and processes.
        train_rows: rows to train on.
        val_rows: rows to validate on, by all processes together.
        log: takes one line at a time.

    Raises:
        AtomloomError: when a target cannot be learnt, or the model lacks a requested feature.
    """

    def __init__(
        self,
        data: LabelledGraphs,
        config: Config,
        fabric: Fabric,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        log: Log,
    ) -> None:
        self.data, self.config, self.settings = data, config, config.training
        self.fabric, self.device, self.log = fabric, fabric.device, log
        self.rank, self.ranks = fabric.global_rank, fabric.world_size
        self.train_rows, self.val_rows = train_rows, val_rows
        self.setup()

    # --- network, optimiser, batches ---

    def setup(self) -> None:
        """Create a new network with its optimiser, on the device, and the initial state."""
        settings = self.settings
        self.parent = ParentModel(self.config) if settings.start_from else None
        inherited = None
        if self.parent is not None:
            inherited = self.parent.inherited(self.data, self.train_rows, self.fabric)
        self.objective = build_objective(
            self.data, self.config, self.train_rows, self.val_rows, inherited
        )
        self.model = self._build_model()
        self.frozen_norms = freeze(self.model, settings.freeze)
        if settings.strategy == "fsdp":
            shard_model(
                self.model.double() if settings.precision == "64" else self.model, self.fabric
            )
        fused = settings.precision != "fp16-mixed"
        self.optimizer = build_optimizer(self.model, settings, fused=fused)
        # The module a step calls: the model, or the model with its derivatives; then as wrapped by Fabric.
        self.step_network = Network(self.objective.step_network(self.model))
        self.network, self.fabric_optimizer = self.fabric.setup(self.step_network, self.optimizer)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.objective.prepare(self.model, self.device, self.log)
        self._told_of_parent = self._fill_in_parent()
        self.forward: Callable[[GraphBatch], Tensor] = self.model
        self.ema = MovingAverage(self.model, settings.ema_decay) if settings.ema_decay else None
        self.schedule = Schedule(settings)
        self.lr = settings.learning_rate
        self.state = TrainState(
            fabric=self.fabric,
            model=self.model,
            optimizer=self.optimizer,
            plateau=self.schedule.plateau,
            objective=self.objective,
            ema=self.ema,
            history=History(self.objective.names),
        )

    def _build_model(self) -> nn.Module:
        """Build the config's network with initial weights from the seed."""
        objective = self.objective
        torch.manual_seed(self.settings.seed)
        model = build_model(self.config.model, objective.outputs, **objective.model_options)
        require_elements(model, self.data.table.numbers)
        require_sizes(model, np.diff(self.data.table.node_ptr))
        if self.settings.gradient_checkpointing:
            if not hasattr(model, "gradient_checkpointing"):
                raise AtomloomError(
                    f"model {self.config.model.name} has no layers that can be recomputed",
                    where="training.gradient_checkpointing",
                )
            model.gradient_checkpointing = True  # type: ignore[assignment] # a flag, though modules declare tensors
        return model

    def _fill_in_parent(self) -> list[str]:
        """Give the network the weights of the model that it starts from; return lines for the log."""
        if self.parent is None:
            return []
        objective, elements = self.objective, self.data.elements(self.train_rows)
        options = objective.model_options
        return self.parent.fill(self.model, objective.outputs, options, elements)

    def loader(self, rows: np.ndarray, bounds: Batching | None = None, **options: Any) -> Loader:
        """Loader of some rows, by the config; with `shuffle`, for training."""
        labels = self.objective.labels(training="shuffle" in options)
        passes = getattr(self.model, "passes", lambda *_: ())
        return self.data.loader(
            rows,
            labels.targets,
            bounds=bounds or self.settings.batch,
            dtype=torch.float64 if self.settings.precision == "64" else torch.float32,
            prefetch=self.settings.prefetch,
            device=self.device,
            of_atoms=labels.of_atoms,
            of_structures=labels.of_structures,
            with_edges=labels.with_edges,
            sampling_weights=labels.sampling_weights,
            passes=passes(self.device.type, self.settings.compile),
            **options,
        )

    # --- a run ---

    def fit(
        self,
        run_dir: Path,
        key: str,
        asked_to_stop: Callable[[], int],
        taken_by: Callable[[], str] = lambda: "",
        until: int | None = None,
        start: Start | None = None,
    ) -> TrainResult | None:
        """Train to the end, resuming where the run was.

        Args:
            run_dir: the run's folder.
            key: digest of all that determines the run's result.
            asked_to_stop: returns the signal that asks the run to stop; 0 if none.
            taken_by: returns the process that has taken the run over; empty if none has.
            until: save the state after this epoch and return nothing, if the run is not over by then.
            start: final state of another run, which this one continues.

        Raises:
            AtomloomError: when the state is of another run or damaged, the loss is no longer a finite
                number, the run is asked to stop, or another process has taken it over.
        """
        self.run_dir, self.key = run_dir, key
        self.asked_to_stop, self.taken_by = asked_to_stop, taken_by
        self.elements = self.data.elements(self.train_rows)
        self._prepare_batches()
        self.resume(start)
        self._start_watches()
        while not self.finished and (until is None or self.state.epoch < until):
            epoch = self.begin_epoch()
            self.train_epoch(epoch)
            self.end_epoch(epoch)
        for logger in self.loggers:
            logger.close()
        state = self.state
        if not self.finished:
            self.checkpoint()
            return None
        if self.stopped_early:
            self.log(
                f"stopped: no lower validation error for {state.epochs_without_improvement} epochs"
            )
        if not state.history.rows or state.best.weights is None:
            raise AtomloomError("no epoch was trained", where=run_dir)
        self._publish()
        return self._result()

    @property
    def stopped_early(self) -> bool:
        """Whether the validation error has not fallen for as long as the config waits."""
        patience = self.settings.early_stopping or math.inf
        return self.state.epochs_without_improvement >= patience

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train; also true for a run killed before its result."""
        return self.state.epoch >= self.settings.last_epoch or self.stopped_early

    def _prepare_batches(self) -> None:
        """Plan batches for training and validation; compile the model, or record steps, on request."""
        settings, ranks = self.settings, self.ranks
        self.train_loader = self.loader(
            self.train_rows, seed=settings.seed, shuffle=True, rank=self.rank, ranks=ranks
        )
        self.val_loader = self.loader(self.val_rows[self.rank :: ranks])
        if len(oversize := self.train_loader.oversize):
            self.log(
                f"{len(oversize):,} structures exceed training.batch by themselves and run alone "
                f"(rows {oversize[:8].tolist()}{' ...' if len(oversize) > 8 else ''})"
            )
        if settings.compile and any(spec.derived for spec in self.config.targets):
            self.log(
                "warning: no torch.compile: a compiled model cannot be differentiated twice, as forces need"
            )
        elif settings.compile:
            self.forward = compiled_model(self.model, self.train_loader, self.fabric, self.log)
            self.step_network.model = self.objective.step_network(self.forward)
        self.recorded_step: Callable[..., Tensor] = self.micro_step
        if records_steps(settings, self.device.type == "cuda", ranks):
            always = settings.cuda_graphs is True
            self.recorded_step = RecordedSteps(self.micro_step, self.model, always, self.log)

    def _start_watches(self) -> None:
        """Start clocks and loggers from where the run is."""
        state = self.state
        self.loggers = []
        if self.rank == 0:
            content = self.config.model_dump(mode="json")
            self.loggers = open_loggers(self.settings.loggers, self.run_dir, content, state.epoch)
        self.timer = CheckpointTimer(self.settings.checkpoint_minutes)
        self.clock = Clock(self.device)
        self._seconds_before, self._begun = state.seconds, time.perf_counter()
        batches = len(self.train_loader.plan(state.epoch))
        self._epochs_before = state.epoch + state.batch_idx / max(1, batches)

    # --- an epoch ---

    def begin_epoch(self) -> Epoch:
        """Count the terms of an epoch's sums; a resumed epoch keeps its sums."""
        state, settings = self.state, self.settings
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()
        counts = self.objective.counts(self.train_loader, state.epoch)
        shares = torch.from_numpy(step_shares(counts, settings.accumulate, self.ranks))
        if state.batch_idx == 0:
            state.loss_sums = torch.zeros(counts.shape, dtype=torch.float64)
        state.loss_sums = state.loss_sums.to(self.device)
        self.objective.begin(state.epoch, self.device)
        self.clock.start()
        return Epoch(counts, shares.to(self.device), loss_scale(self.fabric), time.perf_counter())

    def train_epoch(self, epoch: Epoch) -> None:
        """Take the steps of an epoch, from the current batch on."""
        state, accumulate = self.state, self.settings.accumulate
        batches, cuda = len(epoch.shares), self.device.type == "cuda"
        for batch in self.train_loader.batches(state.epoch, state.batch_idx):
            self.clock.mark("data")
            if state.batch_idx % accumulate == 0:
                self._set_learning_rate(
                    state.batch_idx // accumulate / math.ceil(batches / accumulate)
                )
            is_last_microbatch = (
                state.batch_idx + 1
            ) % accumulate == 0 or state.batch_idx + 1 == batches
            is_first_of_run = state.epoch == state.batch_idx == 0
            _seed_noise(
                self.settings.seed, state.epoch, state.batch_idx * self.ranks + self.rank, cuda
            )
            with (
                self.fabric.no_backward_sync(self.network, enabled=not is_last_microbatch),
                statistics_of_this_batch(self.model)
                if is_first_of_run and self.parent is None
                else nullcontext(),
            ):
                step = self.micro_step if is_first_of_run else self.recorded_step
                shares = epoch.shares[state.batch_idx]
                state.loss_sums[state.batch_idx] = step(batch, shares, self.clock.mark)
            state.batch_idx += 1
            if not cuda or state.batch_idx % CUDA_CHECK_STEPS == 0 or state.batch_idx == batches:
                self._check_losses(batch)
            if not is_last_microbatch:
                continue
            self.optimizer_step()
            self.clock.mark("optimizer")
            if state.batch_idx < batches and (self.ranks == 1 or state.step % AGREE_STEPS == 0):
                self._checkpoint_if_due(batch)

    def micro_step(
        self, batch: GraphBatch, shares: Tensor, mark: Callable[[str], None] | None = None
    ) -> Tensor:
        """Run forward and backward; gradients are added to those of the weights.

        Args:
            batch: the batch.
            shares: [L], factors of the sums of the loss terms.
            mark: told of `forward` and `backward` when they are done.

        Returns:
            [L] the sums, detached.
        """
        sums = self.objective.sums(self.network(Sealed(batch)).content, batch)
        if mark:
            mark("forward")
        # Derivatives by anything but weights would cost another pass if forces are learnt.
        loss = self.objective.loss(sums, shares)
        if self.ranks > 1:
            self.fabric.backward(loss)
        else:
            self.fabric.backward(loss, inputs=self.trained)
        if mark:
            mark("backward")
        return sums.detach()

    def optimizer_step(self) -> None:
        """Update the weights by their gradients, reset these, and update the moving average."""
        if self.settings.clip_norm is not None:
            self.fabric.clip_gradients(
                self.network,
                self.fabric_optimizer,
                max_norm=self.settings.clip_norm,
                error_if_nonfinite=False,
            )
        self.fabric_optimizer.step()
        self.fabric_optimizer.zero_grad()
        self._count_step()

    def validate(self, loader: Loader) -> Scores:
        """Evaluate errors on the rows of a loader, of which each process has its share."""
        self.model.eval()
        with self.fabric.autocast(), unsharded(self.model):
            return self.objective.validate(self.forward, loader, self.fabric)

    def end_epoch(self, epoch: Epoch) -> None:
        """Validate, record the epoch, and save the state if it is due."""
        state, parts = self.state, self.clock.seconds()
        validation_begun = time.perf_counter()
        train_loss = self._train_loss(epoch)
        # Each process has its own statistics of batch norms: all evaluate with those of the first.
        share_from_first(self.fabric, self.model.buffers())
        share_from_first(self.fabric, self.ema.buffers() if self.ema else [])
        with self.ema.applied() if self.ema else nullcontext():
            scores = self.validate(self.val_loader)
            self._judge(scores)
        self.schedule.plateau.see(scores.error)
        now = time.perf_counter()
        state.history.add(
            epoch=state.epoch + 1,
            step=state.step,
            learning_rate=self.lr,
            train_loss=train_loss,
            val_loss=scores.loss,
            maes=scores.maes,
            seconds=now - epoch.begun,
            parts={**parts, "validation": now - validation_begun},
        )
        for logger in self.loggers:
            logger.write(state.history.rows[-1])
        state.epoch, state.batch_idx, state.seconds = state.epoch + 1, 0, self._elapsed()
        self._report(epoch)
        self._checkpoint_if_due()

    # --- parts of the above ---

    def _set_learning_rate(self, share: float) -> None:
        """Set learning rate and momentum of the next step, at this fraction of the epoch."""
        done = (self.state.epoch + share) / self.settings.epochs
        self.lr = self.schedule.lr(done)
        set_rate(self.optimizer, self.lr, self.schedule.momentum(done))

    def _count_step(self) -> None:
        self.state.step += 1
        if self.ema is not None:
            self.ema.update(self.state.step)

    def _check_losses(self, batch: GraphBatch) -> None:
        """Raise an error if the loss of a batch so far is not finite; on the CPU each batch is checked."""
        state = self.state
        first = 0 if self.device.type == "cuda" else state.batch_idx - 1
        done = range(first, state.batch_idx)
        check_finite(state.loss_sums, done, self.run_dir, state.epoch, batch)

    def _train_loss(self, epoch: Epoch) -> float:
        """Mean loss over the epoch, while the weights changed; to be called by all processes."""
        state = self.state
        state.loss_sums = summed(state.loss_sums, self.fabric)
        shares = torch.from_numpy(1.0 / np.maximum(epoch.counts.sum(axis=0), 1.0))
        return float(self.objective.loss(state.loss_sums.sum(dim=0), shares.to(self.device)))

    def _judge(self, scores: Scores) -> None:
        """Keep the weights just validated if they are the best, and write those to be kept."""
        state, settings = self.state, self.settings
        epoch = state.epoch + 1
        if len(self.val_rows) and not math.isfinite(scores.error):
            raise predicts_nothing(self.run_dir, epoch, state.step)
        if scores.error < state.best.error or not len(self.val_rows):
            full = full_state(self.model.state_dict())
            weights = {name: tensor.detach().clone() for name, tensor in full.items()}
            state.best = Best(scores.error, epoch, state.step, scores.maes, weights)
            state.epochs_without_improvement = 0
        else:
            state.epochs_without_improvement += 1
        if settings.keep_every and epoch % settings.keep_every == 0:
            self._keep(f"epoch-{epoch:04d}", scores)
        if epoch == settings.last_epoch or self.stopped_early:
            self._keep("last", scores)

    def _report(self, epoch: Epoch) -> None:
        """Log the epoch that has just ended."""
        state, scale = self.state, loss_scale(self.fabric)
        if scale < epoch.loss_scale:
            self.log(
                f"fp16: gradients overflowed and their steps were skipped; the loss scale fell from "
                f"{epoch.loss_scale:g} to {scale:g}"
            )
        epoch_seconds = (self._elapsed() - self._seconds_before) / (
            state.epoch - self._epochs_before
        )
        names, units = self.objective.names, self.objective.units
        line = progress_line(state.history, self.settings.last_epoch, names, units, epoch_seconds)
        self.log(line)

    def _elapsed(self) -> float:
        """Seconds of training and validation, all calls together."""
        return self._seconds_before + time.perf_counter() - self._begun

    def _result(self) -> TrainResult:
        state, names = self.state, self.objective.names
        maes = state.best.maes or [None] * len(names)
        return TrainResult(
            parameters=self._parameters(),
            epochs_run=state.epoch,
            best_epoch=state.best.epoch,
            best_val_mae=dict(zip(names, maes, strict=True)),
            steps=state.step,
            stopped_early=self.stopped_early,
            seconds=state.seconds,
            device=device_name(self.device),
            threads=torch.get_num_threads(),
        )

    def _parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.trained)

    # --- files ---

    def resume(self, start: Start | None = None) -> None:
        """Load the run's state, if there is one; else that of the run it continues, if there is one."""
        state = self.state
        saved = load_state(self.run_dir / "state" / "last.ckpt", self.key)
        if saved is None and start is not None:
            self._continue(start)
            return
        if saved is not None:
            state.load_state_dict(saved)
            self.log(f"resuming at epoch {state.epoch + 1}, batch {state.batch_idx + 1}")
            return
        frozen = sum(p.numel() for p in self.model.parameters() if not p.requires_grad)
        self.log(
            f"{self.config.model.name}: {self._parameters():,} parameters"
            f"{f', {frozen:,} more frozen' if frozen else ''}; "
            f"{len(self.train_rows):,} structures to train, {len(self.val_rows):,} to validate; "
            f"{self.device}, precision {self.settings.precision}"
        )
        for line in self._told_of_parent:
            self.log(line)

    def _continue(self, start: Start) -> None:
        """Load the last state of another run.

        Raises:
            AtomloomError: when it is damaged, of other data or settings, has changed meanwhile, or leaves
                nothing to train.
        """
        saved = load_state(start.state, start.key)
        if saved is None:
            raise AtomloomError("does not exist", where=start.state)
        if start.digest not in (state_digest(saved), file_digest(start.state)):
            raise AtomloomError(
                "is not the state that this run is to begin with",
                where=start.state,
                todo="start again",
            )
        self.state.load_state_dict(saved)
        if self.finished:
            waited = self.state.epochs_without_improvement
            raise AtomloomError(
                f"its run was stopped early, {waited:,} epochs after its best",
                where="training.continue_from",
                todo="training.early_stopping must be more, or null",
            )
        self.log(f"continuing {start.state.parents[1]} after epoch {self.state.epoch}")
        if start.processes != self.ranks:
            normed = any(hasattr(module, "running_mean") for module in self.model.modules())
            self.log(
                f"number of processes: {self.ranks} instead of {start.processes}: the same steps to rounding"
                + (", except that batch norms see other parts of a batch" if normed else "")
            )

    def checkpoint(self) -> None:
        """Write the state for a killed run, and the files that users may read meanwhile."""
        state, started = self.state, time.monotonic()
        state.seconds = self._elapsed()
        content = state.state_dict()
        if self.rank > 0:
            return
        weights = content["model"]
        if not all(
            torch.isfinite(weights[name]).all() for name, _ in self.model.named_parameters()
        ):
            raise diverged(self.run_dir, state.epoch, state.step)
        save_state(self.run_dir / "state" / "last.ckpt", self.key, content)
        self._tell_progress()
        self._publish()
        self.timer.saved(started)

    def _checkpoint_if_due(self, batch: GraphBatch | None = None) -> None:
        """Save the state if it is due, the run is over, or it is asked to stop; in the last case stop.

        Nothing is written where another process has taken the run over.

        Args:
            batch: the last one; None at the end of an epoch.
        """
        end_of_epoch = batch is None
        stop, due = self.asked_to_stop(), self.timer.due(end_of_epoch)
        over = end_of_epoch and self.finished
        other = self.taken_by() if over or stop or due else ""
        if self.ranks > 1:  # all follow the first one
            stop, due, other = self.fabric.broadcast((stop, due, other))
        if other:
            raise taken_over(self.run_dir, other)
        if batch is not None and (stop or due):
            self._check_losses(batch)
        if over or stop or due:
            self.checkpoint()
        if stop and not over:
            raise stopped(self.run_dir, stop)

    def _tell_progress(self) -> None:
        """Write the position of the saved state, and the errors of the best epoch so far, as JSON.

        The history is an output of the workflow, which removes it when the training is stopped.
        """
        state, best = self.state, self.state.best
        position = {"epoch": state.epoch, "epochs": self.settings.epochs, "best_epoch": best.epoch}
        maes = best.maes or (None,) * len(self.objective.names)
        errors = dict(zip(self.objective.names, maes, strict=True))
        whole = {**position, "seconds": state.seconds, "val_mae": errors}
        write_sealed(self.run_dir / "state" / "progress.json", whole)

    def _publish(self) -> None:
        """Write the history, and the best weights so far as the run's model file."""
        if self.rank > 0:
            return
        best, history = self.state.best, self.state.history
        history.write(self.run_dir / "history.csv")
        if best.weights is not None:
            card = self._card(best.epoch, best.step, best.maes)
            write_model(self.run_dir / "model.safetensors", best.weights, card)

    def _keep(self, name: str, scores: Scores) -> None:
        """Write the weights just validated as a separate model file."""
        state = self.state
        weights = full_state(self.model.state_dict())
        if self.rank == 0:
            card = self._card(state.epoch + 1, state.step, scores.maes)
            write_model(self.run_dir / "checkpoints" / f"{name}.safetensors", weights, card)

    def _card(self, epoch: int, step: int, maes: Sequence[float]) -> ModelCard:
        """Card of the model file of an epoch."""
        facts: dict[str, Any] = {"epoch": epoch, "step": step, "val_mae": list(maes)}
        facts["trained_on"] = _trained_on(self.config, len(self.train_rows) + len(self.val_rows))
        if self.parent is not None:
            facts["start_from"] = self.parent.facts
            facts["trained_on"] += self.parent.trained_on or ["unknown data"]
        return self.objective.card(self.config, facts, self.elements)


class FullBatchTrainer(Trainer):
    """Trainer with L-BFGS: an epoch is one call of the optimiser, on the loss of all batches together."""

    @cached_property
    def full_batch(self) -> FullBatch:
        """Batches of the first epoch, which all others use too."""
        counts = self.objective.counts(self.train_loader, 0)
        shares = torch.from_numpy(step_shares(counts, len(counts), self.ranks)).to(self.device)
        batches = list(self.train_loader.batches(0))
        return FullBatch(self.step_network.model, self.objective, batches, shares)

    def train_epoch(self, epoch: Epoch) -> None:
        """Call the optimiser once."""
        state, full_batch, optimizer = self.state, self.full_batch, self.optimizer
        assert isinstance(optimizer, LBFGS)
        self.clock.mark("data")
        state.loss_sums = full_batch.step(optimizer).double()
        state.batch_idx = len(state.loss_sums)
        self._count_step()
        self.clock.mark("optimizer")
        check_finite(state.loss_sums, range(state.batch_idx), self.run_dir, state.epoch)


class TableTrainer(Trainer):
    """Trainer of a tabular model: all is one fit, which begins anew where it was stopped."""

    def setup(self) -> None:
        """Create a new model."""
        self.parent = None
        self.objective = build_objective(self.data, self.config, self.train_rows, self.val_rows)
        self.model = self._build_model()

    def fit(
        self,
        run_dir: Path,
        key: str,
        asked_to_stop: Callable[[], int],
        taken_by: Callable[[], str] = lambda: "",
        until: int | None = None,
        start: Start | None = None,
    ) -> TrainResult | None:
        """Fit the model; arguments are those of `Trainer.fit`."""
        model, labels, begun = (
            self.model,
            self.objective.labels(training=False),
            time.perf_counter(),
        )
        assert isinstance(model, TabularModel)
        features, threads = labels.of_structures[GLOBALS], torch.get_num_threads()
        self.log(
            f"{self.config.model.name}: {features.shape[1]:,} features; {len(self.train_rows):,} structures to "
            f"train, {len(self.val_rows):,} to validate; {threads} threads"
        )
        rows, circumstances = self.train_rows, Fit(self.settings, threads, self.log)
        arrays = fit_table(model, features[rows], labels.targets[rows], circumstances)
        fitted = time.perf_counter()
        scores = self._scores(self.objective, self.val_rows)
        if len(self.val_rows) and not math.isfinite(scores.error):
            raise predicts_nothing(run_dir, 1, 1)
        of_training = build_objective(self.data, self.config, rows, rows)
        seconds = time.perf_counter() - begun
        history = History(self.objective.names)
        history.add(
            epoch=1,
            step=1,
            learning_rate=math.nan,
            train_loss=self._scores(of_training, rows).loss,
            val_loss=scores.loss,
            maes=scores.maes,
            seconds=seconds,
            parts={"optimizer": fitted - begun, "validation": seconds - (fitted - begun)},
        )
        if other := taken_by():
            raise taken_over(run_dir, other)
        facts: dict[str, Any] = {"epoch": 1, "step": 1, "val_mae": list(scores.maes)}
        facts["trained_on"] = _trained_on(self.config, len(rows) + len(self.val_rows))
        card = self.objective.card(self.config, facts, self.data.elements(rows))
        history.write(run_dir / "history.csv")
        write_model(run_dir / "model.safetensors", arrays, card)
        names = self.objective.names
        self.log(f"fitted in {seconds:.3g} s{self._told(scores)}")
        return TrainResult(
            parameters=sum(a.numel() for a in arrays.values() if a.is_floating_point()),
            epochs_run=1,
            best_epoch=1,
            best_val_mae=dict(zip(names, scores.maes or [None] * len(names), strict=True)),
            steps=1,
            stopped_early=False,
            seconds=seconds,
            device=device_name(self.device),
            threads=threads,
        )

    def _told(self, scores: Scores) -> str:
        """End of the line of the log, with the validation errors."""
        own = zip(self.objective.names, scores.maes, self.objective.units, strict=False)
        return "".join(f"; val MAE of {name} {mae:.4g} {unit}".rstrip() for name, mae, unit in own)

    def _scores(self, objective: Objective, rows: np.ndarray) -> Scores:
        """Errors on some rows, which are those that the objective validates on."""
        labels = objective.labels(training=False)
        loader = self.data.loader(
            rows,
            labels.targets,
            bounds=self.settings.batch,
            dtype=torch.float64,
            of_structures=labels.of_structures,
        )
        return objective.validate(self.model.eval(), loader, self.fabric)


def _trainer_of(config: Config) -> type[Trainer]:
    """Kind of trainer of the config's model."""
    if isinstance(config.model, TabularSection):
        return TableTrainer
    return FullBatchTrainer if config.training.optimizer == "lbfgs" else Trainer


def _settings_of_devices(config: Config) -> Training:
    """The section `training` with the device that the config's model is trained on."""
    settings = config.training
    if isinstance(config.model, TabularSection):
        return settings.model_copy(update={"device": "cpu"})
    return settings


def _asked_to_stop(config: Config) -> AbstractContextManager[Callable[[], int]]:
    """Notice of signals to stop, where there is a state to save before that."""
    if isinstance(config.model, TabularSection):
        return nullcontext(lambda: 0)
    return termination_noticed()


def loss_scale(fabric: Fabric) -> float:
    """Loss scale of fp16, which keeps gradients from underflow; 1 in other precisions."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def _say_nothing(_: str) -> None:
    """Ignore a message: the first process reports."""


def _trained_on(config: Config, structures: int) -> list[str]:
    """Data that a model has seen: its own, and those behind the models that its features are computed with."""
    behind = filter(None, (model_behind(one.teacher) for one in config.features.values()))
    return [
        f"{config.dataset.name} ({structures:,} structures)",
        *(data for model in behind for data in data_behind(model, config.paths.results)),
    ]


def _run_digest(data: LabelledGraphs, config: Config, start: Start | None) -> str:
    """Digest of everything that determines the run's result."""
    from_model = config.start_model
    return short_hash(
        {
            "data": data.digest(),
            "graph": config.graph.key_content(),
            "model": config.model.key_content(),
            "training": config.training.key_content(),
            "target": config.dataset.target,
            "globals": config.dataset.global_features,
            "trainer": TRAINER,
            **direct_kinds(config),
            **({} if start is None else {"parent": start.digest}),
            **({} if from_model is None else {"start_from": from_model.spec}),
        }
    )


def rows_with_targets(data: LabelledGraphs, split: str, log: Log) -> np.ndarray:
    """Rows of a split with at least one known target, even if only forces."""
    rows = data.split(split)
    known = data.known()[rows]
    if not known.all():
        log(f"{(~known).sum():,} structures of split {split} have no known target and are left out")
    if split == "train" and not known.any():
        raise AtomloomError("there is no structure with a target to train with", where="split")
    return rows[known]


def _seed_noise(seed: int, epoch: int, batch_idx: int, cuda: bool) -> None:
    """Make dropout and the like a function of (seed, epoch, batch)."""
    mixed = (
        seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + batch_idx * 0x94D049BB133111EB
    ) & ((1 << 63) - 1)
    torch.default_generator.manual_seed(mixed)
    if cuda:
        torch.cuda.manual_seed(mixed)
