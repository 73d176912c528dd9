"""Standardizer: targets in real units to the numbers a network learns, and back.

Mean and standard deviation are those of the training rows. It knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from atomloom.errors import AtomloomError


@dataclass(frozen=True, eq=False)
class Standardizer:
    """z = (f(y) - mean) / std, where f is the logarithm or the identity. K targets."""

    mean: np.ndarray
    """[K] float64, of f(y) over the training rows."""
    std: np.ndarray
    """[K] float64, likewise; 1 where all training values are equal."""
    log: np.ndarray
    """[K] bool, whether f is the natural logarithm."""
    classes: bool = False
    """Whether targets are 0 and 1, which are left as they are, and a network gives the logarithm of
    the odds of 1, of which `restore` makes a probability."""

    @classmethod
    def for_classes(
        cls, targets: np.ndarray, rows: np.ndarray, names: Sequence[str]
    ) -> Standardizer:
        """For targets that are 0 or 1.

        Args:
            targets: [S, K], NaN where unknown.
            rows: rows of the training set.
            names: the K targets' names.

        Raises:
            AtomloomError: when a target is anything else, or of one class in all training rows.
        """
        other = np.isfinite(targets) & (targets != 0) & (targets != 1) | np.isinf(targets)
        if other.any():
            row, column = np.argwhere(other)[0]
            raise AtomloomError(
                f"{names[column]} of row {row} is {targets[row, column]:g}, not 0 or 1",
                where="training.loss",
                todo="bce is for classes: use mse, mae or huber, or label classes 0 and 1",
            )
        for column, name in enumerate(names):
            values = targets[rows, column]
            if len(np.unique(values[np.isfinite(values)])) < 2:
                raise AtomloomError(
                    f"the training structures are of one class of {name}", where="targets"
                )
        count = len(names)
        return cls(np.zeros(count), np.ones(count), np.zeros(count, dtype=bool), classes=True)

    @classmethod
    def fit(
        cls, targets: np.ndarray, rows: np.ndarray, names: Sequence[str], logs: Sequence[str] = ()
    ) -> Standardizer:
        """Take mean and standard deviation over the training rows.

        Args:
            targets: [S, K] in real units, NaN where unknown.
            rows: rows of the training set.
            names: the K targets' names.
            logs: names of those whose logarithm is learnt.

        Raises:
            AtomloomError: when a target is unknown in all training rows, is infinite, has a
                logarithm of what is not positive, or `logs` names no target.
        """
        for name in logs:
            if name not in names:
                raise AtomloomError(
                    f"{name} is no target", where="training.log_targets", todo=f"targets: {names}"
                )
        log = np.array([name in logs for name in names])
        if np.isinf(targets).any():
            row, column = np.argwhere(np.isinf(targets))[0]
            raise AtomloomError(f"{names[column]} of row {row} is infinite", where="targets")
        with np.errstate(invalid="ignore"):
            refused = (targets <= 0) & log
        if refused.any():
            row, column = np.argwhere(refused)[0]
            raise AtomloomError(
                f"{names[column]} of row {row} is {targets[row, column]}, which has no logarithm",
                where="training.log_targets",
                todo="leave the target out of log_targets, or the row out of the data set",
            )
        values = _transform(targets[rows], log)
        mean, std = np.empty(len(names)), np.empty(len(names))
        for column, name in enumerate(names):
            known = values[np.isfinite(values[:, column]), column]
            if not len(known):
                raise AtomloomError(f"no training structure has a value of {name}", where="targets")
            mean[column], std[column] = known.mean(), known.std()
            # Equal values differ by rounding of their mean; that is no scale to divide by.
            if std[column] <= 1e-12 * max(abs(mean[column]), 1e-300):
                std[column] = 1.0
        return cls(mean, std, log)

    def content(self) -> dict[str, Any]:
        """What a model file holds of it."""
        columns = {name: getattr(self, name).tolist() for name in ("mean", "std", "log")}
        return {**columns, "classes": self.classes}

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Standardizer:
        """The inverse of `content`."""
        mean, std = np.array(content["mean"]), np.array(content["std"])
        return cls(mean, std, np.array(content["log"], dtype=bool), content["classes"])

    def standardize(self, targets: np.ndarray) -> np.ndarray:
        """[..., K] real units to standard deviations from the mean."""
        return (_transform(targets, self.log) - self.mean) / self.std

    def restore(self, standardized: np.ndarray) -> np.ndarray:
        """[..., K] a network's outputs in real units (probabilities for classes), in float64."""
        if self.classes:
            return special.expit(np.asarray(standardized, dtype=np.float64))
        values = np.asarray(standardized, dtype=np.float64) * self.std + self.mean
        values[..., self.log] = np.exp(values[..., self.log])
        return values


def _transform(targets: np.ndarray, log: np.ndarray) -> np.ndarray:
    values = np.array(targets, dtype=np.float64)
    values[..., log] = np.log(values[..., log])
    return values
