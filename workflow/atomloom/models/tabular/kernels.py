"""Kernel machines: sums over training rows, weighted by a function of the distance to each.

Legend: V rows of all outputs, B structures, G features, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from atomloom.config.model import GaussianProcessConfig, SVRConfig
from atomloom.models.tabular.base import FLOAT, INDEX, TabularModel, require


class KernelMachine(TabularModel):
    """Base of kernel machines: each output has its own rows, the ones from `first` [K+1] of it to that of the next."""

    rows: Tensor
    weights: Tensor
    first: Tensor

    def _check(self) -> None:
        first, count = self.first.tolist(), len(self.rows)
        require(len(first) == self.outputs + 1, "first is not of the outputs")
        require(first[0] == 0 and first[-1] == count, "rows are not those of the outputs")
        require(first == sorted(first), "first does not grow")
        require(self.rows.shape[1] == self.features, "rows are not of the features")
        require(len(self.weights) == count, "rows and weights differ in number")
        self._first = first

    def _parts(self) -> Iterator[slice]:
        for start, end in zip(self._first[:-1], self._first[1:], strict=True):
            yield slice(start, end)


class SVR(KernelMachine):
    """Support vector regression."""

    ARRAYS: ClassVar[Mapping[str, tuple[torch.dtype, int]]] = {
        "rows": (FLOAT, 2),
        "weights": (FLOAT, 1),
        "first": (INDEX, 1),
        "gamma": (FLOAT, 1),
        "intercept": (FLOAT, 1),
    }
    """`rows` [V, G]: support vectors; `weights` [V]: their dual coefficients; `gamma`, `intercept` [K]."""
    gamma: Tensor
    intercept: Tensor
    config: SVRConfig

    def _check(self) -> None:
        super()._check()
        of_outputs = (self.gamma, self.intercept)
        require(all(len(one) == self.outputs for one in of_outputs), "an output has no intercept")
        require(bool((self.gamma > 0).all()), "gamma is not above zero")

    def of_features(self, features: Tensor) -> Tensor:
        """[B, K] sums over support vectors."""
        found = []
        for output, part in enumerate(self._parts()):
            rows = self.rows[part]
            if self.config.kernel == "linear":
                kernel = features @ rows.T
            else:
                kernel = torch.exp(-self.gamma[output] * distances(features, rows).square())
            found.append(kernel @ self.weights[part] + self.intercept[output])
        return torch.stack(found, dim=1)


class GaussianProcess(KernelMachine):
    """Mean of a Gaussian process after the training rows are known."""

    ARRAYS: ClassVar[Mapping[str, tuple[torch.dtype, int]]] = {
        "rows": (FLOAT, 2),
        "weights": (FLOAT, 1),
        "first": (INDEX, 1),
        "variance": (FLOAT, 1),
        "length_scale": (FLOAT, 2),
    }
    """`rows` [V, G]: training rows; `weights` [V]: inverse covariance times targets; `variance` [K] and
    `length_scale` [K, G]: of the covariance."""
    variance: Tensor
    length_scale: Tensor
    config: GaussianProcessConfig

    def _check(self) -> None:
        super()._check()
        require(len(self.variance) == self.outputs, "an output has no variance")
        shape = (self.outputs, self.features)
        require(self.length_scale.shape == shape, "length scales are not of outputs and features")
        positive = bool((self.variance > 0).all() and (self.length_scale > 0).all())
        require(positive, "a scale is not above zero")

    def of_features(self, features: Tensor) -> Tensor:
        """[B, K] sums over training rows."""
        found = []
        for output, part in enumerate(self._parts()):
            scale = self.length_scale[output]
            d = distances(features / scale, self.rows[part] / scale)
            found.append(self.variance[output] * self._correlation(d) @ self.weights[part])
        return torch.stack(found, dim=1)

    def _correlation(self, d: Tensor) -> Tensor:
        """Correlation at distance d in length scales (Rasmussen and Williams, eqs. 4.9, 4.14 and 4.17)."""
        if self.config.kernel == "rbf":
            return torch.exp(-0.5 * d.square())
        scaled = math.sqrt(2 * self.config.nu) * d
        polynomial = {
            0.5: torch.ones_like(d),
            1.5: 1.0 + scaled,
            2.5: 1.0 + scaled + scaled.square() / 3.0,
        }
        return polynomial[self.config.nu] * torch.exp(-scaled)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances of each row of one table to each of another, without the cancellation of a matrix product."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
