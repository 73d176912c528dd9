"""Optimisers: AdamW, SGD or L-BFGS, with norms and biases exempt from weight decay.

Knows nothing of the loop.
"""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from atomloom.config.training import Training
from atomloom.training.optim.full_batch import build_lbfgs
from atomloom.training.parts import belongs, require_parts

MOMENTUM = 0.9
FACTOR = "rate_factor"
"""Entry of a group with its own learning rate: the factor of the rate."""


def build_optimizer(model: nn.Module, settings: Training, fused: bool = True) -> Optimizer:
    """Build the optimiser of the config, with one group with weight decay and one without (except L-BFGS), for each
    learning rate.

    Args:
        model: the model.
        settings: optimiser, rate and decay.
        fused: one kernel for all weights; not to be combined with a gradient scaler and clipping.
    """
    trained = {name: own for name, own in model.named_parameters() if own.requires_grad}
    if settings.optimizer == "lbfgs":
        return build_lbfgs(list(trained.values()))
    require_parts(model, settings.learning_rates, "training.learning_rates")
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        fitting = (own for part, own in settings.learning_rates.items() if belongs(name, part))
        by_factor.setdefault(next(fitting, 1.0), []).append(parameter)
    groups = []
    for factor, parameters in by_factor.items():
        # Only where it is not 1: groups are in saved states, which stay as they were.
        own = {} if factor == 1.0 else {FACTOR: factor}
        # Matrices decay; vectors are biases and the scales of norms.
        matrices, others = (
            [p for p in parameters if (p.ndim > 1) == is_matrix] for is_matrix in (True, False)
        )
        groups += [
            {"params": matrices, "weight_decay": settings.weight_decay, **own},
            {"params": others, "weight_decay": 0.0, **own},
        ]
    groups = [group for group in groups if group["params"]]
    lr = settings.learning_rate
    if settings.optimizer == "sgd":
        return SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True, fused=fused)
    return AdamW(groups, lr=lr, fused=fused)


def set_rate(optimizer: Optimizer, lr: float, momentum: float | None) -> None:
    """Learning rate of the next step; and its momentum (AdamW: first beta) unless None."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(FACTOR, 1.0)
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum
