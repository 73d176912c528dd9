"""Training steps of property models: variants of one step, their errors against float64, their speed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.common.timing import Seconds, clock, in_turns, processor


class Stepping(Protocol):
    """Program that takes the step: a variant of ours, or another."""

    name: str

    def check(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs and gradients of one step, in float64."""

    def step(self) -> Seconds | None:
        """One optimiser step; says how long it took where another process takes it."""


@dataclass
class Variant:
    """One way to take the training step."""

    name: str
    model: nn.Module
    data: Any
    target: Tensor
    bf16: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        self.call = torch.compile(self.model) if self.compiled else self.model
        # Fused, as the trainer has it.
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)

    def _backward(self) -> Tensor:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            output = self.call(self.data)
        output = output.reshape(-1).to(self.target.dtype)
        (output - self.target).square().mean().backward()
        return output.detach()

    def check(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs and gradients."""
        output = self._backward().double()
        named = self.model.named_parameters()
        return output, {name: w.grad.double() for name, w in named if w.grad is not None}

    def step(self) -> None:
        """One optimiser step."""
        self._backward()
        self.optimizer.step()


def relative(found: Tensor, true: Tensor) -> float:
    """Error of a whole tensor, relative to its norm."""
    return float((found.detach().double() - true).norm() / true.norm())


def compare(
    variants: Iterable[Stepping], exact: Variant, rounds: int
) -> list[dict[str, str | float]]:
    """Errors against `exact`, then times in turns: a row per variant, `speedup` against the first.

    Times of one thread are its processor's, which other work on the machine does not enter; of several, the clock's.
    """
    spent = processor if torch.get_num_threads() == 1 else clock
    true_output, true_gradient = exact.check()
    rows: list[dict[str, Any]] = []
    steps = {}
    for variant in variants:
        output, gradient = variant.check()
        # Weights that take no part have a gradient of zero here and none there.
        names = sorted(true_gradient.keys() & gradient.keys())
        found, true = (
            torch.cat([part[name].flatten() for name in names])
            for part in (gradient, true_gradient)
        )
        rows.append(
            {
                "variant": variant.name,
                "output_error": relative(output, true_output),
                "gradient_error": relative(found, true),
            }
        )
        variant.step()  # compiles, fills caches
        steps[variant.name] = variant.step
    times = in_turns(steps, rounds, warm_up=0)
    for row in rows:
        own = times[row["variant"]]
        row["step_ms"] = 1e3 * spent(own)
        row["fastest_ms"] = 1e3 * min(spent([each]) for each in own)
        row["speedup"] = rows[0]["step_ms"] / row["step_ms"]
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"\n{title}")
    print(f"{'variant':34s} {'ms/step':>9s} {'fastest':>9s} {'speed':>6s} "
          f"{'output error':>13s} {'gradient error':>15s}")  # fmt: skip
    for row in rows:
        print(
            f"{row['variant']:34s} {row['step_ms']:9.1f} {row['fastest_ms']:9.1f} "
            f"{row['speedup']:6.2f} {row['output_error']:13.1e} {row['gradient_error']:15.1e}",
            flush=True,
        )
