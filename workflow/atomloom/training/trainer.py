"""The training loop: labelled graphs and a config in, a model file and a history out.

`train` reads from top to bottom. Everything a step does is a function of (seed, epoch, position),
so the state of a run is small, and a run that was killed goes on as if it had not been. It knows
nothing of Snakemake and of where data come from.

Shapes: B structures, K targets; `position` counts batches of an epoch, `step` optimiser steps.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from atomloom.config.root import Config
from atomloom.config.training import Batching, Training
from atomloom.data.batch import GraphBatch
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.loader import Loader
from atomloom.errors import AtomloomError, InterruptedRun
from atomloom.inference.devices import (
    Network,
    Sealed,
    arithmetic,
    close_fabric,
    open_fabric,
    share_from_first,
)
from atomloom.inference.model_file import ModelCard, read_model, write_model
from atomloom.models.registry import build_model, require_elements
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
from atomloom.training.cuda_graphs import RecordedSteps, records_steps
from atomloom.training.distributed import (
    full_state,
    load_optimizer,
    load_weights,
    shard_model,
    unsharded,
)
from atomloom.training.logging.history import History, progress_line
from atomloom.training.logging.loggers import open_loggers
from atomloom.training.objectives.base import Objective, step_shares
from atomloom.training.objectives.build import build_objective
from atomloom.training.optim.ema import MovingAverage
from atomloom.training.optim.full_batch import WholeSet
from atomloom.training.optim.optimizers import build_optimizer, set_rate
from atomloom.training.optim.schedules import Schedule

Log = Callable[[str], None]

AGREE_STEPS = 20  # between which several processes do not ask each other whether to save
CUDA_CHECK_STEPS = 50  # reading a loss makes the GPU wait; on the CPU every step is looked at


@dataclass(frozen=True)
class TrainResult:
    """What came out, besides the files."""

    parameters: int
    """Number of trained weights."""
    epochs_run: int
    """Epochs done, all calls together."""
    best_epoch: int
    """Epoch (from 1) whose weights are in the model file."""
    best_val_mae: dict[str, float | None]
    """Its validation MAE by target in real units; None without validation rows."""
    steps: int
    """Optimiser steps, all calls together."""
    stopped_early: bool
    """Whether early stopping ended the run."""
    seconds: float
    """Time of training and validation, all calls together."""
    device: str
    """`cpu`, or the GPU's name."""
    threads: int
    """CPU threads of the last call."""
    rank: int = 0
    """Which of the processes this is; the first reports."""


@dataclass
class Best:
    """The best epoch so far."""

    error: float = math.inf
    """Of validation, see `Scores`."""
    epoch: int = 0
    step: int = 0
    maes: tuple[float, ...] = ()
    """Of each target, in real units."""
    weights: Mapping[str, Tensor] | None = None

    def state(self) -> dict[str, Any]:
        """What has to be saved."""
        return {**vars(self), "maes": list(self.maes)}


def train(
    data: LabelledGraphs, config: Config, run_dir: str | Path, log: Log = print
) -> TrainResult:
    """Train the config's model, or go on with it where it was; a finished run only says so.

    Writes `model.safetensors` (the best epoch by validation error), `history.csv`, the state for
    resuming under `state/`, and model files of the last and other epochs under `checkpoints/` into the
    run's folder, each in one step.

    Args:
        data: graphs, targets in real units, splits.
        config: the whole config; `model`, `training`, `graph` and `dataset.target` matter.
        run_dir: the run's folder, of this config and these data only.
        log: takes one line at a time.

    Raises:
        AtomloomError: when the device or precision is not available, a target cannot be learnt, the
            state is of another run or damaged, or the loss is no longer a finite number.
    """
    run_dir = Path(run_dir)
    key = _run_digest(data, config)
    finished, history = run_dir / "state" / "finished.json", run_dir / "history.csv"
    if finished.exists():
        content = read_json(finished, "key", "result", "history", todo=f"remove {finished.parent}")
        if content["key"] != key:
            raise AtomloomError(
                "is a finished run with other data or settings", where=run_dir, todo="remove it"
            )
        if not _is_whole(run_dir / "model.safetensors"):
            # The result was taken away or damaged: what is asked for is a training, not its last state.
            finished.unlink()
            (run_dir / "state" / "last.ckpt").unlink(missing_ok=True)
        elif history.exists() and file_digest(history) == content["history"]:
            log("already trained")
            return TrainResult(**content["result"])
    fabric = open_fabric(config.training, log)
    if not fabric.is_global_zero:
        log = _say_nothing
    with arithmetic(config.training, fabric.device.type), termination_noticed() as asked_to_stop:
        result = _train(data, config, run_dir, key, fabric, log, asked_to_stop)
    if fabric.is_global_zero:
        own = {"key": key, "result": asdict(result), "history": file_digest(history)}
        write_sealed(finished, own)
    close_fabric(fabric)
    return replace(result, rank=fabric.global_rank)


def _is_whole(model: Path) -> bool:
    """Whether a model file is there and sound."""
    try:
        read_model(model)
    except AtomloomError:
        return False
    return True


@dataclass(eq=False)
class Bench:
    """What a training step needs, set up on a device."""

    fabric: Fabric
    objective: Objective
    model: nn.Module
    step_network: Network
    """Around what a step calls: the model, or the model with its derivatives."""
    network: nn.Module
    """The same as Fabric has it."""
    optimizer: torch.optim.Optimizer
    stepper: Any
    """The same as Fabric has it."""
    average: MovingAverage | None
    data: LabelledGraphs
    settings: Training

    def __post_init__(self) -> None:
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    @classmethod
    def set_up(
        cls,
        data: LabelledGraphs,
        config: Config,
        fabric: Fabric,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        log: Log,
    ) -> Bench:
        """A new network with its optimiser.

        Raises:
            AtomloomError: when a target cannot be learnt, or the model cannot do what it should.
        """
        settings = config.training
        objective = build_objective(data, config, train_rows, val_rows)
        given = (len(objective.given.names),) if objective.given else ()
        torch.manual_seed(settings.seed)
        model = build_model(config.model, objective.outputs, *given)
        require_elements(model, data.table.numbers)
        if settings.gradient_checkpointing:
            if not hasattr(model, "gradient_checkpointing"):
                raise AtomloomError(
                    f"model {config.model.name} has no layers that are computed again",
                    where="training.gradient_checkpointing",
                )
            model.gradient_checkpointing = True
        if settings.strategy == "fsdp":
            shard_model(model.double() if settings.precision == "64" else model, fabric)
        optimizer = build_optimizer(model, settings, fused=settings.precision != "fp16-mixed")
        step_network = Network(objective.step_network(model))
        network, stepper = fabric.setup(step_network, optimizer)
        objective.prepare(model, fabric.device, log)
        average = MovingAverage(model, settings.ema_decay) if settings.ema_decay else None
        return cls(
            fabric,
            objective,
            model,
            step_network,
            network,
            optimizer,
            stepper,
            average,
            data,
            settings,
        )

    def micro_step(
        self, batch: GraphBatch, shares: Tensor, mark: Callable[[str], None] | None = None
    ) -> Tensor:
        """Forward and backward; gradients are added to those that the weights have.

        Args:
            batch: the batch.
            shares: [L], what the sums of the loss terms are multiplied by.
            mark: told of `forward` and `backward` when they are done.

        Returns:
            [L] the sums, detached.
        """
        sums = self.objective.sums(self.network(Sealed(batch)).content, batch)
        if mark:
            mark("forward")
        # Derivatives by what is no weight would cost another pass where forces are learnt.
        only = {} if self.fabric.world_size > 1 else {"inputs": self.trained}
        self.fabric.backward(self.objective.loss(sums, shares), **only)
        if mark:
            mark("backward")
        return sums.detach()

    def optimizer_step(self) -> None:
        """Move the weights along their gradients, and forget these."""
        if self.settings.clip_norm is not None:
            self.fabric.clip_gradients(
                self.network,
                self.stepper,
                max_norm=self.settings.clip_norm,
                error_if_nonfinite=False,
            )
        self.stepper.step()
        self.stepper.zero_grad()

    def loader(self, rows: np.ndarray, bounds: Batching | None = None, **options: Any) -> Loader:
        """Batches of some rows, as the config says; with `shuffle`, for training."""
        carried = self.objective.carried(training="shuffle" in options)
        beside = getattr(self.model, "passes", lambda *_: ())
        return self.data.loader(
            rows,
            carried.targets,
            bounds=bounds or self.settings.batch,
            dtype=torch.float64 if self.settings.precision == "64" else torch.float32,
            prefetch=self.settings.prefetch,
            device=self.fabric.device,
            of_atoms=carried.of_atoms,
            of_structures=carried.of_structures,
            with_edges=carried.with_edges,
            chances=carried.chances,
            passes=beside(self.fabric.device.type, self.settings.compile),
            **options,
        )


def _train(
    data: LabelledGraphs,
    config: Config,
    run_dir: Path,
    key: str,
    fabric: Fabric,
    log: Log,
    asked_to_stop: Callable[[], int],
) -> TrainResult:
    settings = config.training
    device, cuda = fabric.device, fabric.device.type == "cuda"
    rank, ranks = fabric.global_rank, fabric.world_size
    state_file = run_dir / "state" / "last.ckpt"

    # --- data ---
    train_rows = rows_with_targets(data, "train", log)
    val_rows = rows_with_targets(data, "val", log)
    _check_validation(settings, len(val_rows))

    # --- model and batches ---
    bench = Bench.set_up(data, config, fabric, train_rows, val_rows, log)
    objective, model, average = bench.objective, bench.model, bench.average
    network, optimizer = bench.network, bench.optimizer
    elements = data.elements(train_rows)
    names = objective.names
    parameters = sum(parameter.numel() for parameter in bench.trained)
    forward: Callable[[GraphBatch], Tensor] = model
    schedule = Schedule(settings)
    loader = bench.loader(train_rows, seed=settings.seed, shuffle=True, rank=rank, ranks=ranks)
    val_loader = bench.loader(val_rows[rank::ranks])
    if len(oversize := loader.oversize):
        log(
            f"{len(oversize):,} structures alone exceed training.batch and run alone "
            f"(rows {oversize[:8].tolist()}{' ...' if len(oversize) > 8 else ''})"
        )
    if settings.compile and config.model.kind == "potential" and len(names) > 1:
        log(
            "warning: no torch.compile: what it makes cannot be differentiated twice, as forces ask"
        )
    elif settings.compile:
        forward = compiled_model(model, loader, fabric, log)
        bench.step_network.model = objective.step_network(forward)
    take_micro_step = bench.micro_step
    if records_steps(settings, cuda, ranks):
        always = settings.cuda_graphs is True
        take_micro_step = RecordedSteps(bench.micro_step, model, always, log)
    # --- where the run is ---
    epoch = position = step = waited = 0
    seconds = 0.0
    best, history = Best(), History(names)
    errors: Tensor | None = None  # [batches, terms] sums of the loss, of the epoch under way
    if (state := load_state(state_file, key)) is not None:
        epoch, position, step = state["epoch"], state["position"], state["step"]
        waited, seconds = state["waited"], state["seconds"]
        errors = state["errors"] if rank == 0 else torch.zeros_like(state["errors"])
        if average is not None:
            average.load_state_dict(state["average"])
        load_weights(model, state["model"])
        load_optimizer(optimizer, state["optimizer"])
        fabric.strategy.precision.load_state_dict(state["scaler"])
        schedule.plateau.load_state_dict(state["plateau"])
        objective.load_state_dict(state["objective"])
        best, history = Best(**state["best"]), History(names, state["history"])
        log(f"going on at epoch {epoch + 1}, batch {position + 1}")
    else:
        log(
            f"{config.model.name}: {parameters:,} parameters; {len(train_rows):,} structures to train, "
            f"{len(val_rows):,} to validate; {device}, precision {settings.precision}"
        )
    loggers = []
    if rank == 0:
        loggers = open_loggers(settings.loggers, run_dir, config.model_dump(mode="json"), epoch)
    timer = CheckpointTimer(settings.checkpoint_minutes)
    clock = Clock(device)
    resumed_seconds, begun = seconds, time.perf_counter()
    begun_epochs = epoch + position / max(1, len(loader.plan(epoch)))

    def agreed(*answers: int) -> tuple[int, ...]:
        """What the first process thinks."""
        return answers if ranks == 1 else fabric.broadcast(answers)

    def save() -> None:
        """Write what a killed run needs, and what a person may look at meanwhile."""
        started = time.monotonic()
        sums = fabric.all_reduce(errors.clone(), reduce_op="sum")  # it works in place
        weights, moments = full_state(model.state_dict()), full_state(optimizer.state_dict())
        averages = average.state_dict() if average else {}
        if rank > 0:
            return
        if not all(torch.isfinite(weights[name]).all() for name, _ in model.named_parameters()):
            raise _diverged(run_dir, epoch, step)
        content = {
            "epoch": epoch,
            "position": position,
            "step": step,
            "waited": waited,
            "seconds": resumed_seconds + time.perf_counter() - begun,
            "errors": sums,
            "model": weights,
            "optimizer": moments,
            "scaler": fabric.strategy.precision.state_dict(),
            "plateau": schedule.plateau.state_dict(),
            "objective": objective.state_dict(),
            "best": best.state(),
            "history": history.rows,
            "average": averages,
        }
        save_state(state_file, key, content)
        publish()
        timer.saved(started)

    def publish() -> None:
        if rank > 0:
            return
        history.write(run_dir / "history.csv")
        if best.weights is not None:
            facts = {"epoch": best.epoch, "step": best.step, "val_mae": list(best.maes)}
            card = ModelCard.of(config, objective.scale, facts, objective.given, elements)
            write_model(run_dir / "model.safetensors", best.weights, card)

    def keep(name: str, maes: tuple[float, ...]) -> None:
        """Write the weights just validated as a model file of their own."""
        weights = full_state(model.state_dict())
        if rank == 0:
            facts = {"epoch": epoch + 1, "step": step, "val_mae": list(maes)}
            card = ModelCard.of(config, objective.scale, facts, objective.given, elements)
            write_model(run_dir / "checkpoints" / f"{name}.safetensors", weights, card)

    # --- epochs ---
    whole_set = None
    if settings.optimizer == "lbfgs":
        objective.begin(0, device)
        of_all = step_shares(objective.counts(loader, 0), len(loader), ranks)
        whole_set = WholeSet(
            bench.step_network.model,
            objective,
            list(loader.batches(0)),
            torch.from_numpy(of_all).to(device),
        )
    patience = settings.early_stopping or math.inf
    stopped_early = (
        waited >= patience
    )  # true of a run that was killed between its end and its result
    while epoch < settings.epochs and not stopped_early:
        model.train()
        counts = objective.counts(loader, epoch)
        batches = len(counts)
        steps = math.ceil(batches / settings.accumulate)
        shares = torch.from_numpy(step_shares(counts, settings.accumulate, ranks)).to(device)
        if position == 0 or errors is None:
            errors = torch.zeros(counts.shape, dtype=torch.float64)
        errors = errors.to(device)
        objective.begin(epoch, device)
        scale_before = loss_scale(fabric)
        clock.start()
        epoch_begun = time.perf_counter()

        if whole_set is not None and position == 0:
            errors[:] = whole_set.step(optimizer)
            clock.mark("optimizer")
            rate, position, step = settings.learning_rate, batches, step + 1
            _check_finite(errors, position, run_dir, epoch)
            if average is not None:
                average.update(step)

        for batch in loader.batches(epoch, position) if whole_set is None else ():
            clock.mark("data")

            if position % settings.accumulate == 0:
                done = (epoch + position // settings.accumulate / steps) / settings.epochs
                rate = schedule.lr(done)
                set_rate(optimizer, rate, schedule.momentum(done))
            closes = (position + 1) % settings.accumulate == 0 or position + 1 == batches

            _seed_noise(settings.seed, epoch, position * ranks + rank, cuda)
            first = epoch == position == 0
            with (
                fabric.no_backward_sync(network, enabled=not closes),
                statistics_of_this_batch(model) if first else nullcontext(),
            ):
                take = bench.micro_step if first else take_micro_step
                errors[position] = take(batch, shares[position], clock.mark)
            position += 1
            if not cuda or position % CUDA_CHECK_STEPS == 0 or position == batches:
                _check_finite(errors, position, run_dir, epoch, batch)
            if not closes:
                continue

            bench.optimizer_step()
            step += 1
            if average is not None:
                average.update(step)
            clock.mark("optimizer")
            if position < batches and (ranks == 1 or step % AGREE_STEPS == 0):
                stop, due = agreed(asked_to_stop(), timer.due())
                if stop or due:
                    _check_finite(errors, position, run_dir, epoch, batch)
                    save()
                if stop:
                    raise _stopped(run_dir, stop)

        # --- end of the epoch: validate, remember the best, decide ---
        parts = clock.seconds()
        validation_begun = time.perf_counter()
        errors = fabric.all_reduce(errors, reduce_op="sum")
        of_epoch = torch.from_numpy(1.0 / np.maximum(counts.sum(axis=0), 1.0)).to(device)
        train_loss = float(objective.loss(errors.sum(dim=0), of_epoch))
        # Statistics of batch norms are each process's own: all evaluate with those of the first.
        share_from_first(fabric, model.buffers())
        share_from_first(fabric, average.buffers() if average else [])
        model.eval()
        with average.applied() if average else nullcontext():
            with fabric.autocast(), unsharded(model):
                scores = objective.validate(forward, val_loader, fabric)
            if len(val_rows) and not math.isfinite(scores.error):
                raise AtomloomError(
                    f"the model predicts no finite numbers after epoch {epoch + 1}, step {step}",
                    where=run_dir,
                    todo="lower training.learning_rate, or set training.clip_norm",
                )
            better = scores.error < best.error or not len(val_rows)
            if better:
                weights = {n: t.detach().clone() for n, t in full_state(model.state_dict()).items()}
                best = Best(scores.error, epoch + 1, step, scores.maes, weights)
            waited = 0 if better else waited + 1
            stopped_early = waited >= patience
            last = epoch + 1 == settings.epochs or stopped_early
            if settings.keep_every and (epoch + 1) % settings.keep_every == 0:
                keep(f"epoch-{epoch + 1:04d}", scores.maes)
            if last:
                keep("last", scores.maes)
        schedule.plateau.see(scores.error)

        now = time.perf_counter()
        seconds = resumed_seconds + now - begun
        history.add(
            epoch=epoch + 1,
            step=step,
            learning_rate=rate,
            train_loss=train_loss,
            val_loss=scores.loss,
            maes=scores.maes,
            seconds=now - epoch_begun,
            parts={**parts, "validation": now - validation_begun},
        )
        for logger in loggers:
            logger.write(history.rows[-1])
        epoch, position = epoch + 1, 0
        speed = (now - begun) / (epoch - begun_epochs)
        if loss_scale(fabric) < scale_before:
            log(
                f"fp16: gradients overflowed and their steps were left out; the loss scale fell from "
                f"{scale_before:g} to {loss_scale(fabric):g}"
            )
        log(progress_line(history, settings.epochs, names, objective.units, speed))
        stop, due = agreed(asked_to_stop(), timer.due(end_of_epoch=True))
        if last or stop or due:
            save()
        if stop and not last:
            raise _stopped(run_dir, stop)

    for logger in loggers:
        logger.close()
    if stopped_early:
        log(f"stopped: no lower validation error for {waited} epochs")
    if not history.rows or best.weights is None:
        raise AtomloomError("no epoch was trained", where=run_dir)
    publish()
    return TrainResult(
        parameters=parameters,
        epochs_run=epoch,
        best_epoch=best.epoch,
        best_val_mae=dict(zip(names, best.maes or [None] * len(names), strict=True)),
        steps=step,
        stopped_early=stopped_early,
        seconds=seconds,
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        threads=torch.get_num_threads(),
    )


def loss_scale(fabric: Fabric) -> float:
    """What gradients of fp16 are multiplied by, to keep them from underflow; 1 in other precisions."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def _say_nothing(_: str) -> None:
    """The first process reports."""


def _run_digest(data: LabelledGraphs, config: Config) -> str:
    """Names all that determines the run's result."""
    return short_hash(
        {
            "data": data.digest(),
            "graph": config.graph.key_content(),
            "model": config.model.key_content(),
            "training": config.training.key_content(),
            "target": config.dataset.target,
            "globals": config.dataset.global_features,
            "trainer": TRAINER,
        }
    )


def rows_with_targets(data: LabelledGraphs, split: str, log: Log) -> np.ndarray:
    """Rows of a split of which at least one target is known, be it forces without an energy."""
    rows = data.split(split)
    known = data.known()[rows]
    if not known.all():
        log(f"{(~known).sum():,} structures of split {split} have no known target and are left out")
    if split == "train" and not known.any():
        raise AtomloomError("there is no structure with a target to train with", where="split")
    return rows[known]


def _check_validation(settings: Training, rows: int) -> None:
    wants = {
        "early_stopping": settings.early_stopping,
        "scheduler": settings.scheduler == "plateau",
    }
    for name, wanted in wants.items():
        if wanted and not rows:
            raise AtomloomError(
                "needs a validation set", where=f"training.{name}", todo="give the split one"
            )


def _check_finite(
    errors: Tensor, position: int, run_dir: Path, epoch: int, batch: GraphBatch | None = None
) -> None:
    """Stop where the loss of a batch up to `position` is no finite number."""
    if errors.device.type == "cpu" and bool(torch.isfinite(errors[position - 1]).all()):
        return
    bad = torch.nonzero(~torch.isfinite(errors[:position]).all(dim=1))
    if len(bad):
        first = int(bad[0])
        raise AtomloomError(
            f"the loss is not a finite number at epoch {epoch + 1}, batch {first + 1}"
            + (f" (rows {batch.rows[:8].tolist()} ...)" if batch and first == position - 1 else ""),
            where=run_dir,
            todo="lower training.learning_rate, set training.clip_norm, or look at these structures",
        )


def _diverged(run_dir: Path, epoch: int, step: int) -> AtomloomError:
    return AtomloomError(
        f"the weights are no longer finite numbers at epoch {epoch + 1}, step {step}",
        where=run_dir,
        todo="lower training.learning_rate, or set training.clip_norm",
    )


def _stopped(run_dir: Path, by: int) -> AtomloomError:
    kind, name = (InterruptedRun, "Ctrl-C") if by == signal.SIGINT else (AtomloomError, "SIGTERM")
    return kind(
        f"stopped by {name}; the state is saved", where=run_dir, todo="run the same again to go on"
    )


def _seed_noise(seed: int, epoch: int, position: int, cuda: bool) -> None:
    """Make dropout and the like a function of (seed, epoch, position)."""
    mixed = (
        seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + position * 0x94D049BB133111EB
    ) & ((1 << 63) - 1)
    torch.default_generator.manual_seed(mixed)
    if cuda:
        torch.cuda.manual_seed(mixed)


def compiled_model(model: nn.Module, loader: Loader, fabric: Fabric, log: Log) -> nn.Module:
    """The compiled model, tried on one batch; the model itself, saying why, where that fails."""
    batch = loader.slice(loader.plan(0)[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compiled, reason = model, None
    for unbroken in (True, False):
        try:
            attempt = torch.compile(model, dynamic=True, fullgraph=unbroken)
            with fabric.autocast():
                attempt(batch).float().sum().backward()
        except Exception as error:  # whatever the compiler does not like
            reason = str(error).strip().splitlines() or [type(error).__name__]
            torch._dynamo.reset()
            continue
        compiled = attempt
        break
    if compiled is model:
        log(f"warning: torch.compile failed, going on without: {reason[0]}")
    elif reason is not None:
        log(f"warning: torch.compile: the graph is broken, which costs speed: {reason[0]}")
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
    return compiled
