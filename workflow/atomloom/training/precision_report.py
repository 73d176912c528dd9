"""Precision report: effect of each precision on a training with the user's own data.

The same network learns the same batches in 64 bits, 32, tf32, bf16 and fp16, step by step in turn, so
that speeds are compared side by side. The results are errors against 64 bits at the start, curves of
the loss, and times; a precision that the device lacks, or that turns out not to be in use, is reported
as such. It writes no files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from atomloom.config.root import Config
from atomloom.config.training import Training
from atomloom.data.batch import GraphBatch
from atomloom.data.dataset import LabelledGraphs
from atomloom.errors import AtomloomError
from atomloom.inference.devices import arithmetic
from atomloom.models.common.outputs import Outputs
from atomloom.training.batch_norm import statistics_of_this_batch
from atomloom.training.fabric import open_fabric
from atomloom.training.failures import require_steps_on_batches
from atomloom.training.optim.optimizers import set_rate
from atomloom.training.trainer import Trainer, loss_scale, rows_with_targets

Log = Callable[[str], None]

PRECISIONS: tuple[str, ...] = get_args(Training.model_fields["precision"].annotation)
EXACT, PLAIN = "64", "32"
WARM_UP = 3
"""Number of first steps, whose times do not count."""


@dataclass
class Mode:
    """Results of one precision."""

    precision: str
    used: bool
    """Whether it was available and in use, giving different results from 32."""
    note: str = ""
    """Reason if not, or other remarks."""
    output_error: float | None = None
    """|outputs - those of 64 bits| / |those of 64 bits|, of the first batch in training."""
    gradient_error: float | None = None
    """|gradients - those of 64 bits| / |those of 64 bits|, of all weights together."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step's batch."""
    validation: dict[str, float] = field(default_factory=dict)
    """Error of each target after the last step, in real units."""
    milliseconds: float | None = None
    """Median time of a step."""
    speed: float | None = None
    """Speed relative to 32 bits."""


@dataclass(eq=False)
class _Runner:
    """Training in one precision."""

    mode: Mode
    trainer: Trainer
    batches: Iterator[tuple[GraphBatch, Tensor]]
    seconds: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)


def compare_precisions(data: LabelledGraphs, config: Config, steps: int, log: Log) -> list[Mode]:
    """Train in every precision and compare.

    Args:
        data: graphs, targets and splits.
        config: the whole config; its precision, its number of processes and `compile` do not matter.
        steps: optimiser steps in each precision.
        log: takes one line at a time.

    Raises:
        AtomloomError: when a target cannot be learnt, or the optimiser takes no steps on batches.
    """
    require_steps_on_batches(config)
    train_rows = rows_with_targets(data, "train", log)
    val_rows = rows_with_targets(data, "val", log)
    modes, runners = [], []
    for precision in PRECISIONS:
        settings = config.training.model_copy(
            update={"precision": precision, "devices": 1, "compile": False, "accumulate": 1}
        )
        own = config.model_copy(update={"training": settings})
        notes: list[str] = []
        try:
            fabric = open_fabric(settings, notes.append)
        except AtomloomError as error:
            modes.append(Mode(precision, used=False, note=f"not available: {error.what}"))
            continue
        modes.append(Mode(precision, True, "; ".join(n.removeprefix("warning: ") for n in notes)))
        trainer = Trainer(data, own, fabric, train_rows, val_rows, log)
        runners.append(_Runner(modes[-1], trainer, _batches(trainer)))
    _compare_first_steps(runners)
    for step in range(steps):
        for runner in runners:
            _step(runner, step, steps)
        if (step + 1) % max(1, steps // 10) == 0:
            shown = ", ".join(f"{r.mode.precision} {float(r.losses[-1]):.4g}" for r in runners)
            log(f"step {step + 1}/{steps}: loss {shown}")
    plain = next(
        np.median(r.seconds[WARM_UP:] or r.seconds) for r in runners if r.mode.precision == PLAIN
    )
    for runner in runners:
        mode, trainer = runner.mode, runner.trainer
        mode.losses = torch.stack(runner.losses).tolist()
        seconds = float(np.median(runner.seconds[WARM_UP:] or runner.seconds))
        mode.milliseconds, mode.speed = 1e3 * seconds, float(plain / seconds)
        if len(val_rows):
            with arithmetic(trainer.settings, trainer.device.type):
                scores = trainer.validate(trainer.loader(val_rows))
            mode.validation = dict(zip(trainer.objective.names, scores.maes, strict=True))
    return modes


def _batches(trainer: Trainer) -> Iterator[tuple[GraphBatch, Tensor]]:
    """Iterate endlessly over batches, each with one over the counts of its loss terms."""
    loader = trainer.loader(trainer.train_rows, seed=trainer.settings.seed, shuffle=True)
    epoch = 0
    while True:
        trainer.objective.begin(epoch, trainer.device)
        counts = trainer.objective.counts(loader, epoch)
        shares = torch.from_numpy(1.0 / np.maximum(counts, 1.0)).to(trainer.device)
        yield from zip(loader.batches(epoch), shares, strict=True)
        epoch += 1


def _compare_first_steps(runners: list[_Runner]) -> None:
    """Errors of outputs and gradients against 64 bits, and whether a precision is in use at all."""
    found = {runner.mode.precision: _first_step(runner.trainer) for runner in runners}
    for runner in runners:
        mode = runner.mode
        errors = [
            float((own - exact).norm() / exact.norm().clamp(min=1e-300))
            for own, exact in zip(found[mode.precision], found[EXACT], strict=True)
        ]
        mode.output_error, mode.gradient_error = errors
        pairs = zip(found[mode.precision], found[PLAIN], strict=True)
        if mode.precision != PLAIN and all(torch.equal(own, plain) for own, plain in pairs):
            mode.used = False
            mode.note = "; ".join(filter(None, [mode.note, "not in use: same results as 32"]))


def _first_step(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Outputs for the first batch and gradients of all weights, in 64 bits; no weight is moved."""
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    loader = trainer.loader(trainer.train_rows, seed=trainer.settings.seed, shuffle=True)
    batch = loader.slice(loader.plan(0)[0])
    trainer.model.train()
    trainer.objective.begin(0, trainer.device)
    terms = trainer.objective.counts(loader, 0).shape[1]
    shares = torch.full((terms,), 1.0 / max(1, batch.size), device=trainer.device)
    outputs: list[Any] = []
    hook = trainer.step_network.register_forward_hook(
        lambda network, arguments, sealed: outputs.append(sealed.content)
    )
    with arithmetic(trainer.settings, trainer.device.type):
        trainer.micro_step(batch, shares)
    hook.remove()
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.model.parameters()
    ]
    scale = loss_scale(trainer.fabric)
    gradient = torch.cat([gradient.double().flatten() / scale for gradient in gradients])
    said = Outputs.of(outputs[0]).tensors()
    output = torch.cat([values.detach().double().flatten() for values in said])
    trainer.model.zero_grad(set_to_none=True)
    trainer.model.load_state_dict(before)
    return output, gradient


def _step(runner: _Runner, step: int, steps: int) -> None:
    trainer, done = runner.trainer, step / steps
    device, schedule = trainer.device, trainer.schedule
    batch, shares = next(runner.batches)
    with arithmetic(trainer.settings, device.type):
        started = _now(device)
        set_rate(trainer.optimizer, schedule.lr(done), schedule.momentum(done))
        trainer.model.train()
        with statistics_of_this_batch(trainer.model) if step == 0 else nullcontext():
            sums = trainer.micro_step(batch, shares)
        trainer.optimizer_step()
        runner.seconds.append(_now(device) - started)
    runner.losses.append(trainer.objective.loss(sums, shares).double())


def _now(device: torch.device) -> float:
    """Current time after synchronising the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
