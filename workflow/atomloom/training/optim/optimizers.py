"""Optimisers: AdamW, SGD or L-BFGS, with norms and biases exempt from weight decay.

Knows nothing of the loop.
"""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from atomloom.config.training import Training
from atomloom.training.optim.full_batch import build_lbfgs

MOMENTUM = 0.9


def build_optimizer(model: nn.Module, settings: Training, fused: bool = True) -> Optimizer:
    """Build the optimiser of the config, with one group with weight decay and one without (except L-BFGS).

    Args:
        model: the model.
        settings: optimiser, rate and decay.
        fused: one kernel for all weights; not to be combined with a gradient scaler and clipping.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        # Matrices decay; vectors are biases and the scales of norms.
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "lbfgs":
        return build_lbfgs(trained)
    lr = settings.learning_rate
    if settings.optimizer == "sgd":
        return SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True, fused=fused)
    return AdamW(groups, lr=lr, fused=fused)


def set_rate(optimizer: Optimizer, lr: float, momentum: float | None) -> None:
    """Learning rate of the next step; and its momentum (AdamW: first beta) unless None."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum
