"""Precision certificate: what each arithmetic does to a training on the user's own data.

The same network learns the same batches in 64 bits, 32, tf32, bf16 and fp16, step by step in turn, so
that speeds are taken side by side. What comes out are errors against 64 bits at the start, curves of
the loss, and times; an arithmetic that the device has not got, or that turns out not to be in use, is
named as such. It writes no files.
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
from atomloom.inference.devices import Sealed, arithmetic, open_fabric
from atomloom.training.batch_norm import statistics_of_this_batch
from atomloom.training.optim.optimizers import set_rate
from atomloom.training.optim.schedules import Schedule
from atomloom.training.trainer import Bench, loss_scale, rows_with_targets

Log = Callable[[str], None]

PRECISIONS: tuple[str, ...] = get_args(Training.model_fields["precision"].annotation)
EXACT, PLAIN = "64", "32"
WARM_UP = 3
"""First steps, whose times do not count."""


@dataclass
class Mode:
    """What was seen of one precision."""

    precision: str
    used: bool
    """Whether it was there, and gave other bits than 32."""
    note: str = ""
    """Why not, or what else there is to know."""
    output_error: float | None = None
    """|outputs - those of 64 bits| / |those of 64 bits|, of the first batch in training."""
    gradient_error: float | None = None
    """Likewise, of the gradients of all weights together."""
    losses: list[float] = field(default_factory=list)
    """Of each step's batch."""
    validation: dict[str, float] = field(default_factory=dict)
    """Error of each target after the last step, in real units."""
    milliseconds: float | None = None
    """Median time of a step."""
    speed: float | None = None
    """Times the speed of 32 bits."""


@dataclass(eq=False)
class _Runner:
    """One training under way."""

    mode: Mode
    bench: Bench
    config: Config
    batches: Iterator[tuple[GraphBatch, Tensor]]
    seconds: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)


def certify(data: LabelledGraphs, config: Config, steps: int, log: Log) -> list[Mode]:
    """Train in every precision and compare.

    Args:
        data: graphs, targets and splits.
        config: the whole config; its precision, its number of processes and `compile` do not matter.
        steps: optimiser steps of each.
        log: takes one line at a time.

    Raises:
        AtomloomError: when a target cannot be learnt.
    """
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
        bench = Bench.set_up(data, own, fabric, train_rows, val_rows, log)
        batches = _batches(bench, train_rows)
        runners.append(_Runner(modes[-1], bench, own, batches))
    _compare_first_steps(runners, train_rows)
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
        mode, bench = runner.mode, runner.bench
        mode.losses = torch.stack(runner.losses).tolist()
        seconds = float(np.median(runner.seconds[WARM_UP:] or runner.seconds))
        mode.milliseconds, mode.speed = 1e3 * seconds, float(plain / seconds)
        if len(val_rows):
            bench.model.eval()
            loader = bench.loader(val_rows)
            with (
                arithmetic(runner.config.training, bench.fabric.device.type),
                bench.fabric.autocast(),
            ):
                scores = bench.objective.validate(bench.model, loader, bench.fabric)
            mode.validation = dict(zip(bench.objective.names, scores.maes, strict=True))
    return modes


def _batches(bench: Bench, rows: np.ndarray) -> Iterator[tuple[GraphBatch, Tensor]]:
    """Batches without end, each with one over the counts of its loss terms."""
    loader = bench.loader(rows, seed=bench.settings.seed, shuffle=True)
    epoch = 0
    while True:
        bench.objective.begin(epoch, bench.fabric.device)
        counts = bench.objective.counts(loader, epoch)
        shares = torch.from_numpy(1.0 / np.maximum(counts, 1.0)).to(bench.fabric.device)
        for position, batch in enumerate(loader.batches(epoch)):
            yield batch, shares[position]
        epoch += 1


def _compare_first_steps(runners: list[_Runner], rows: np.ndarray) -> None:
    """Errors of outputs and gradients against 64 bits, and whether a precision is in use at all."""
    found = {}
    for runner in runners:
        bench, settings = runner.bench, runner.config.training
        before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
        loader = bench.loader(rows, seed=settings.seed, shuffle=True)
        batch = loader.slice(loader.plan(0)[0])
        scale = loss_scale(bench.fabric)
        bench.model.train()
        bench.objective.begin(0, bench.fabric.device)
        with arithmetic(settings, bench.fabric.device.type):
            output = bench.network(Sealed(batch)).content
            sums = bench.objective.sums(output, batch)
            loss = bench.objective.loss(sums, torch.ones_like(sums) / max(1, batch.size))
            (loss * scale).backward()
        gradients = [
            (torch.zeros_like(p) if p.grad is None else p.grad).double().flatten() / scale
            for p in bench.model.parameters()
        ]
        output = getattr(output, "energy", output).detach().double().flatten()
        found[runner.mode.precision] = (output, torch.cat(gradients))
        bench.model.zero_grad(set_to_none=True)
        bench.model.load_state_dict(before)
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
            mode.note = "; ".join(filter(None, [mode.note, "not in use: gives the bits of 32"]))


def _step(runner: _Runner, step: int, steps: int) -> None:
    bench, settings = runner.bench, runner.config.training
    device = bench.fabric.device
    schedule: Any = Schedule(settings)
    batch, shares = next(runner.batches)
    with arithmetic(settings, device.type):
        started = _now(device)
        set_rate(bench.optimizer, schedule.lr(step / steps), schedule.momentum(step / steps))
        bench.model.train()
        with statistics_of_this_batch(bench.model) if step == 0 else nullcontext():
            sums = bench.micro_step(batch, shares)
        bench.optimizer_step()
        runner.seconds.append(_now(device) - started)
    runner.losses.append(bench.objective.loss(sums, shares).double())


def _now(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
