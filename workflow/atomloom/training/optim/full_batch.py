"""Full-batch steps: L-BFGS for small networks, whose loss is a smooth function.

A potential of some hundred weights is learnt far better by second-order steps on all structures than by
first-order ones on a few. Batches are cut once and kept; several threads share them, and sums are
taken in order, so that results do not depend on the number of threads. Each has the
gradient of its batch to itself, while `Trainer.micro_step` adds to one that all batches share. It
knows nothing of epochs or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.optim import LBFGS

from atomloom.data.batch import GraphBatch
from atomloom.training.objectives.base import Objective

ITERATIONS = 20
"""Number of L-BFGS steps per epoch."""
MEMORY = 50
"""Number of pairs of steps and gradients kept (Liu and Nocedal, Math. Program. 45, 503 (1989))."""


def build_lbfgs(parameters: Sequence[nn.Parameter]) -> LBFGS:
    """Build L-BFGS with a line search that satisfies the strong Wolfe conditions."""
    return LBFGS(
        parameters,
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        history_size=MEMORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )


class FullBatch:
    """Loss of all batches together, and its gradient.

    Args:
        network: returns the output for a batch, with derivatives if the objective needs them.
        objective: the minimised objective, already begun.
        batches: all batches of the training set.
        shares: [batches, L], one over the counts of the whole set.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        batches: Sequence[GraphBatch],
        shares: Tensor,
    ) -> None:
        self._network, self._objective = network, objective
        self._batches, self._shares = batches, shares
        self._parameters = [p for p in network.parameters() if p.requires_grad]

    def step(self, optimizer: LBFGS) -> Tensor:
        """Call the optimiser once; returns [batches, L] sums of the loss at its start."""
        first: list[Tensor] = []
        threads = torch.get_num_threads()
        on_cpu = self._shares.device.type == "cpu"
        workers = min(threads, len(self._batches)) if on_cpu else 1
        torch.set_num_threads(max(1, threads // workers))
        try:
            with ThreadPoolExecutor(workers) as pool:
                optimizer.step(lambda: self._evaluate(pool, first))
        finally:
            torch.set_num_threads(threads)
        return first[0]

    def _evaluate(self, pool: ThreadPoolExecutor, first: list[Tensor]) -> Tensor:
        """Evaluate the loss of all batches, with sums recorded the first time; gradients go to the weights."""
        found = list(pool.map(self._part, range(len(self._batches))))
        if not first:
            first.append(torch.stack([sums for sums, _, _ in found]))
        for parameter, *parts in zip(self._parameters, *(g for _, _, g in found), strict=True):
            parameter.grad = torch.stack(parts).sum(dim=0)
        return torch.stack([loss for _, loss, _ in found]).sum()

    @torch.enable_grad()
    def _part(self, place: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Sums, loss and gradient of one batch."""
        batch = self._batches[place]
        sums = self._objective.sums(self._network(batch), batch)
        loss = self._objective.loss(sums, self._shares[place])
        gradient = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        return sums.detach(), loss.detach(), gradient
