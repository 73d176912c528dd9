"""Ensembles of decision trees as flat arrays of nodes: extremely randomised trees, and boosted ones.

A row goes to the left child where its feature is at most the threshold. A leaf is its own child, so that all rows
take as many steps as the deepest tree has levels.

Legend: M nodes of all trees, T trees, V numbers of a leaf, B structures, G features, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from atomloom.models.tabular.base import FLOAT, INDEX, TabularModel, require

LEAST_PROBABILITY = 1e-15
"""Probability in place of 0, whose logarithm is infinite."""


class Trees(TabularModel):
    """Base of ensembles of trees, each of which contributes to one output or, by its leaves' vectors, to all."""

    ARRAYS: ClassVar[Mapping[str, tuple[torch.dtype, int]]] = {
        "feature": (INDEX, 1),
        "threshold": (FLOAT, 1),
        "left": (INDEX, 1),
        "right": (INDEX, 1),
        "value": (FLOAT, 2),
        "root": (INDEX, 1),
        "output": (INDEX, 1),
        "baseline": (FLOAT, 1),
    }
    """`feature`, `threshold`, `left`, `right` [M] and `value` [M, V]: of nodes. `root` [T]: first node of each
    tree. `output` [T]: the output that it contributes to. `baseline` [K]: added to the outputs."""
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    root: Tensor
    output: Tensor
    baseline: Tensor
    in_single_precision: ClassVar[bool] = False
    """Whether features are rounded to 32 bits before they are compared, as they were in the fit."""

    def _check(self) -> None:
        nodes, width = self.value.shape
        require(nodes > 0 and len(self.root) > 0, "there is no tree")
        of_nodes = (self.feature, self.threshold, self.left, self.right)
        require(all(len(array) == nodes for array in of_nodes), "arrays of nodes differ in length")
        require(len(self.output) == len(self.root), "root and output differ in length")
        require(len(self.baseline) == self.outputs, "baseline is not of the outputs")
        require(width in (1, self.outputs), "leaves are not of the outputs")
        require(
            _within(self.feature, self.features), "a node divides by a feature that does not exist"
        )
        require(_within(self.root, nodes), "the root of a tree is not a node")
        require(_within(self.output, self.outputs if width == 1 else 1), "a tree is of no output")
        own = torch.arange(nodes)
        left, right = self.left.long().cpu(), self.right.long().cpu()
        leaf = (left == own) & (right == own)
        further = (left > own) & (right > own) & (left < nodes) & (right < nodes)
        require(bool((leaf | further).all()), "the children of a node do not come after it")
        self._depth = _levels(self.root.long().cpu(), left, right, leaf)

    def _leaves(self, features: Tensor) -> Tensor:
        """[B, T, V] values of the leaves that rows end in."""
        compared = features.float().double() if self.in_single_precision else features
        node = self.root.long().expand(len(features), -1)
        for _ in range(self._depth):
            goes_left = compared.gather(1, self.feature[node].long()) <= self.threshold[node]
            node = torch.where(goes_left, self.left[node], self.right[node]).long()
        return self.value[node]

    def _sums(self, features: Tensor) -> Tensor:
        """[B, K] sums over trees, without the baseline."""
        leaves = self._leaves(features)
        if leaves.shape[2] > 1:
            return leaves.sum(dim=1)
        found = leaves.new_zeros(len(features), self.outputs)
        return found.index_add_(1, self.output.long(), leaves[:, :, 0])


class ExtraTrees(Trees):
    """Mean of extremely randomised trees.

    Leaves of trees of classes hold probabilities, for which a network gives logarithms: `classes` [1] is 1 then.
    """

    ARRAYS: ClassVar[Mapping[str, tuple[torch.dtype, int]]] = {
        **Trees.ARRAYS,
        "classes": (INDEX, 1),
    }
    classes: Tensor
    in_single_precision: ClassVar[bool] = True

    def _check(self) -> None:
        super()._check()
        require(self.classes.tolist() in ([0], [1]), "classes is neither 0 nor 1")
        self._of_classes = bool(self.classes[0])
        if self._of_classes:
            inside = (self.value >= 0) & (self.value <= 1 + 1e-12)
            require(bool(inside.all()), "a probability is not between 0 and 1")
        if self.value.shape[1] > 1:
            self._count = torch.full_like(self.baseline, len(self.root))
        else:
            self._count = torch.bincount(self.output.long(), minlength=self.outputs).double()
        require(bool((self._count > 0).all()), "an output has no tree")

    def of_features(self, features: Tensor) -> Tensor:
        """[B, K] means over trees; of classes their logarithms, or those of the odds of class 1."""
        mean = self._sums(features) / self._count.to(features) + self.baseline
        if not self._of_classes:
            return mean
        mean = mean.clamp(LEAST_PROBABILITY, 1.0)
        if self.value.shape[1] > 1:
            return mean.log()
        return mean.log() - (1.0 - mean).clamp_min(LEAST_PROBABILITY).log()


class GradientBoosting(Trees):
    """Sum of boosted trees; of classes, logarithms of odds."""

    def of_features(self, features: Tensor) -> Tensor:
        """[B, K] sums over trees."""
        return self._sums(features) + self.baseline


def _within(index: Tensor, count: int) -> bool:
    return bool(((index >= 0) & (index < count)).all())


def _levels(root: Tensor, left: Tensor, right: Tensor, leaf: Tensor) -> int:
    """Number of steps from the roots to the deepest leaf; ends, as children come after their parents."""
    steps, reached = 0, root[~leaf[root]]
    while len(reached):
        steps += 1
        reached = torch.unique(torch.cat([left[reached], right[reached]]))
        reached = reached[~leaf[reached]]
    return steps
