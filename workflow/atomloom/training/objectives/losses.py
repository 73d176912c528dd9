"""Losses, as sums over the known targets of a batch: means are taken over a whole optimiser step.

So a step of several small batches, or of batches shared among processes, has the gradient of the
one large batch. It knows nothing of models.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from atomloom.errors import AtomloomError


def loss_sum(kind: str, prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Sum of the loss over all known targets; a scalar.

    Args:
        kind: `mse`, `mae`, `huber`, `bce` or `cross_entropy`.
        prediction: [B, K] standardised; for `bce` the logarithm of the odds; for `cross_entropy`
            [B, C], logarithms of the C classes' probabilities up to a constant.
        target: [B, K] standardised, NaN where unknown; for `cross_entropy` [B, 1], the class.
        delta: for `huber`, where it turns from quadratic to linear.
    """
    known = ~torch.isnan(target)
    if kind == "cross_entropy":
        classes = torch.where(known, target, 0.0).long()
        chosen = F.log_softmax(prediction, dim=1).gather(1, classes)
        # Not a product with `known`: a prediction that is not a number must not hide behind a zero.
        return -torch.where(known, chosen, 0.0 * chosen.detach()).sum()
    # An unknown target becomes the prediction itself: no error and no gradient.
    target = torch.where(known, target, prediction.detach())
    if kind == "mse":
        return F.mse_loss(prediction, target, reduction="sum")
    if kind == "mae":
        return F.l1_loss(prediction, target, reduction="sum")
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(
            prediction, target.clamp(0.0, 1.0), weight=known.to(target.dtype), reduction="sum"
        )
    if kind == "huber":
        return F.huber_loss(prediction, target, reduction="sum", delta=delta)
    raise AtomloomError(f"unknown loss {kind!r}", where="training.loss")
