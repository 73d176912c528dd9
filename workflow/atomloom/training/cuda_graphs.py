"""Recorded training steps: forward and backward as one CUDA graph, replayed for each batch.

A step of a graph network is some thousand small kernels, and on a fast GPU launching them takes far
longer than computing them. Recorded once for each of a few shapes (`atomloom.data.padding`), they are
launched together. A replay repeats the recorded kernels with other numbers in the same memory;
gradients are those of the step itself. It knows nothing of the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from atomloom.config.training import Training
from atomloom.data.batch import GraphBatch
from atomloom.data.padding import PaddedBatch, Shape, fits, padded_shape

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

Mark = Callable[[str], None] | None
MicroStep = Callable[[GraphBatch, Tensor, Mark], Tensor]
"""Forward and backward pass of a batch, as in `Trainer.micro_step`."""

WARM_UP = 3
"""Number of steps before a recording, in which libraries initialise themselves."""
MOST_SHAPES = 48
"""Max number of recordings; batches of further shapes are not recorded."""
WORTH = 1.1
"""Min speed-up by a replay for `auto` to keep recording."""


def records_steps(settings: Training, cuda: bool, ranks: int) -> bool:
    """Whether steps of such a training can be recorded."""
    options = settings.potential
    plain = (
        settings.accumulate == 1
        and settings.optimizer != "lbfgs"
        and settings.precision != "fp16-mixed"
        and options.sampling != "error"
        and options.force_fraction == 1.0
    )
    return cuda and ranks == 1 and plain and settings.cuda_graphs is not False


@dataclass(frozen=True, eq=False)
class _Recording:
    """Recorded step and the memory it works in."""

    graph: torch.cuda.CUDAGraph
    padded: PaddedBatch
    share: Tensor
    sums: Tensor
    gradients: tuple[Tensor | None, ...]


class RecordedSteps:
    """Micro step that is recorded for each shape of batches, and replayed.

    Args:
        step: the plain micro step.
        model: the network whose weights and buffers it changes.
        always: record even if that is not faster.
        log: takes one line at a time.
    """

    def __init__(
        self, step: MicroStep, model: nn.Module, always: bool, log: Callable[[str], None]
    ) -> None:
        self._step, self._always, self._log = step, always, log
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(model.buffers())
        self._recordings: dict[Shape, _Recording] = {}
        self._pool: _POOL_HANDLE | None = None
        self._on = True

    def __call__(self, batch: GraphBatch, share: Tensor, mark: Mark = None) -> Tensor:
        """Run the micro step, from weights without gradients; the result is valid until the next call.

        `mark` is told of a replay only as `backward`.
        """
        recording = self._recording_for(batch, share) if self._on else None
        if recording is None:
            return self._step(batch, share, mark)
        recording.padded.fill(batch)
        recording.share.copy_(share)
        recording.graph.replay()
        for weight, gradient in zip(self._weights, recording.gradients, strict=True):
            weight.grad = gradient
        if mark:
            mark("backward")
        return recording.sums

    def _recording_for(self, batch: GraphBatch, share: Tensor) -> _Recording | None:
        """Recording of the smallest shape that the batch fits, made if needed; None without."""
        shape = padded_shape(batch)
        if shape is None:
            return None
        fitting = [known for known in self._recordings if fits(batch, known)]
        if fitting:
            return self._recordings[min(fitting, key=lambda known: known.edges)]
        if len(self._recordings) == MOST_SHAPES:
            return None
        return self._record(shape, batch, share)

    def _record(self, shape: Shape, batch: GraphBatch, share: Tensor) -> _Recording | None:
        """Record the step; None, and no more attempts, if that fails or does not pay."""
        kept = [buffer.clone() for buffer in self._buffers]
        padded, share = PaddedBatch(batch, shape), share.clone()
        filled = padded.fill(batch)
        try:
            plain = self._warm_up(filled, share)
            recording = self._recorded(padded, share)
            replayed = _seconds(recording.graph.replay)
        except RuntimeError as error:
            self._on = False
            reason = str(error).strip().splitlines()[0]
            self._log(f"warning: training steps are not recorded as CUDA graphs: {reason}")
            return None
        finally:
            self._forget_gradients()
            with torch.no_grad():
                for buffer, value in zip(self._buffers, kept, strict=True):
                    buffer.copy_(value)
        if not self._recordings:
            times = f"{1e3 * plain:.1f} ms by kernels, {1e3 * replayed:.1f} ms recorded"
            self._on = self._always or plain > WORTH * replayed
            self._log(f"CUDA graphs {'on' if self._on else 'off'}: a step takes {times}")
        if not self._on:
            return None
        self._recordings[shape] = recording
        return recording

    def _warm_up(self, batch: GraphBatch, share: Tensor) -> float:
        """Run the step a few times outside the main stream; returns the seconds of one."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._forget_gradients()
                self._step(batch, share, None)
            seconds = _seconds(lambda: self._step(batch, share, None))
        torch.cuda.current_stream().wait_stream(beside)
        self._forget_gradients()
        return seconds

    def _recorded(self, padded: PaddedBatch, share: Tensor) -> _Recording:
        graph = torch.cuda.CUDAGraph()
        # Loaders work in other threads meanwhile: their driver calls are not part of the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            sums = self._step(padded.batch, share, None)
        self._pool = self._pool or graph.pool()
        gradients = tuple(weight.grad for weight in self._weights)
        return _Recording(graph, padded, share, sums, gradients)

    def _forget_gradients(self) -> None:
        for weight in self._weights:
            weight.grad = None


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of each of two runs, with the device synchronised."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / 2
