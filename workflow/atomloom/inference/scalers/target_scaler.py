"""TargetScaler: scaler between targets in real units and the numbers that a network learns.

Mean and standard deviation are those of the training rows; for targets that grow with the number of
atoms, the mean is per atom. It knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError


@dataclass(frozen=True, eq=False)
class TargetScaler:
    """Scaler z = (f(y) - mean) / std, where f is the logarithm or the identity. K targets."""

    mean: np.ndarray
    """[K] float64, mean of f(y) over the training rows."""
    std: np.ndarray
    """[K] float64, deviation of f(y); 1 where all training values are equal."""
    log: np.ndarray
    """[K] bool, whether f is the natural logarithm."""
    classes: bool = False
    """Whether targets are indices of classes, which are not scaled: 0 and 1, for which a network gives
    the logarithm of the odds of 1; or 0 to `class_count` - 1. `restore` returns probabilities."""
    class_count: int = 0
    """Number of classes of the one target that has several, with one output of the network each; 0
    otherwise."""
    extensive: bool = False
    """Whether targets grow with the number of atoms n: z = (y - n mean) / std, where `mean` is per
    atom and `std` is that of y - n mean. A network that sums z_i over atoms thus predicts
    y = sum_i (std z_i + mean), which doubles with the cell."""

    @classmethod
    def for_classes(
        cls, targets: np.ndarray, rows: np.ndarray, names: Sequence[str]
    ) -> TargetScaler:
        """Create a scaler for targets that are 0 or 1.

        Args:
            targets: [S, K], NaN where unknown.
            rows: rows of the training set.
            names: the K targets' names.

        Raises:
            AtomloomError: when a target is anything else, or of one class in all training rows.
        """
        other = not_classes(targets, 2)
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
    def for_many_classes(cls, targets: np.ndarray, rows: np.ndarray, name: str) -> TargetScaler:
        """Create a scaler for one target that is the index of a class, an integer from 0 on.

        Args:
            targets: [S, 1], NaN where unknown.
            rows: rows of the training set.
            name: the target's name.

        Raises:
            AtomloomError: when a target is anything else, or a class below the highest index is in
                no training row.
        """
        values = targets[:, 0]
        other = not_classes(values)
        if other.any():
            row = int(np.flatnonzero(other)[0])
            raise AtomloomError(
                f"{name} of row {row} is {values[row]:g}, not the index of a class (0, 1, 2, ...)",
                where="training.loss",
                todo="cross_entropy is for classes: use mse, mae or huber, or number the classes",
            )
        count = int(np.nanmax(values, initial=0)) + 1
        trained = values[rows]
        seen = np.unique(trained[np.isfinite(trained)])
        # If one is missing, it is one of these; classes are not enumerated up to a wrong, large index.
        missing = np.setdiff1d(np.arange(min(count, len(seen) + 8)), seen)
        if count < 2 or len(missing):
            what = (
                f"no training structure is of class {', '.join(map(str, missing[:8]))} of {name}"
                if count > 1
                else f"all structures are of one class of {name}"
            )
            raise AtomloomError(
                what,
                where="targets",
                todo="number classes from 0 without gaps, or change the split",
            )
        zero = np.zeros(1)
        return cls(zero, np.ones(1), zero.astype(bool), classes=True, class_count=count)

    @classmethod
    def fit(
        cls,
        targets: np.ndarray,
        rows: np.ndarray,
        names: Sequence[str],
        logs: Sequence[str] = (),
        atoms: np.ndarray | None = None,
    ) -> TargetScaler:
        """Take mean and standard deviation over the training rows.

        Args:
            targets: [S, K] in real units, NaN where unknown.
            rows: rows of the training set.
            names: the K targets' names.
            logs: names of the targets whose logarithm is learnt.
            atoms: [S], number of atoms of each structure, where targets grow with it.

        Raises:
            AtomloomError: when a target is unknown in all training rows, is infinite, so large or
                small that it has no deviation, is not positive but needs a logarithm, or `logs`
                names an unknown target.
        """
        for name in logs:
            if name not in names:
                raise AtomloomError(
                    f"{name} is not a target",
                    where="training.log_targets",
                    todo=f"targets: {names}",
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
            scale = np.abs(known).max()
            with np.errstate(over="ignore", invalid="ignore"):
                if atoms is None:
                    mean[column] = known.mean()
                else:
                    counts = atoms[rows][np.isfinite(values[:, column])]
                    mean[column] = known.sum() / counts.sum()
                    known = known - counts * mean[column]
                std[column] = known.std()
                differ = np.ptp(known) > 1e-12 * scale
            if not np.isfinite([mean[column], std[column]]).all() or (differ and not std[column]):
                raise AtomloomError(
                    f"values of {name}, of up to {scale:.3g}, have squares that overflow",
                    where="targets",
                    todo="give them in another unit",
                )
            # Equal values differ by rounding of their mean; that is no scale to divide by.
            if std[column] <= 1e-12 * max(scale, 1e-300):
                std[column] = 1.0
        return cls(mean, std, log, extensive=atoms is not None)

    @property
    def outputs(self) -> int:
        """Number of outputs of a network."""
        return self.class_count or len(self.mean)

    def numbers(self) -> list[Any]:
        """Numbers that must be finite."""
        return [self.mean, self.std]

    def divisors(self) -> list[Any]:
        """Numbers that must be above zero."""
        return [self.std]

    def to_dict(self) -> dict[str, Any]:
        """Content for a model file."""
        columns = {name: getattr(self, name).tolist() for name in ("mean", "std", "log")}
        content = {**columns, "classes": self.classes}
        if self.class_count:
            content["class_count"] = self.class_count
        return content | {"extensive": True} if self.extensive else content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TargetScaler:
        """Inverse of `to_dict`."""
        mean, std = np.array(content["mean"]), np.array(content["std"])
        return cls(
            mean,
            std,
            np.array(content["log"], dtype=bool),
            content["classes"],
            content.get("class_count", 0),
            content.get("extensive", False),
        )

    def standardize(self, targets: np.ndarray, atoms: np.ndarray | None = None) -> np.ndarray:
        """Convert [S, K] from real units to standard deviations from the mean.

        Args:
            targets: [S, K].
            atoms: [S], number of atoms; needed where targets are extensive.
        """
        return (_transform(targets, self.log) - self._means(atoms)) / self.std

    def restore(self, standardized: np.ndarray, atoms: np.ndarray | None = None) -> np.ndarray:
        """Convert a network's outputs [S, K] to real units, in float64; for classes to probabilities, of
        class 1 of each target or [S, class_count] of each class. `atoms` as in `standardize`."""
        outputs = np.asarray(standardized, dtype=np.float64)
        if self.classes or self.class_count:
            from scipy import special

        if self.class_count:
            return special.softmax(outputs, axis=-1)
        if self.classes:
            return special.expit(outputs)
        values = outputs * self.std + self._means(atoms)
        values[..., self.log] = np.exp(values[..., self.log])
        return values

    def _means(self, atoms: np.ndarray | None) -> np.ndarray:
        if not self.extensive:
            return self.mean
        if atoms is None:
            raise ValueError("extensive targets need numbers of atoms")
        return self.mean * np.asarray(atoms, dtype=np.float64)[:, None]


def not_classes(values: np.ndarray, count: int | None = None) -> np.ndarray:
    """Bool, whether values are known, but not the index of a class; `count`: number of classes, if known."""
    with np.errstate(invalid="ignore"):
        whole = (values >= 0) & (values % 1 == 0) & (values < (count or np.inf))
    return ~(whole | np.isnan(values))


def _transform(targets: np.ndarray, log: np.ndarray) -> np.ndarray:
    values = np.array(targets, dtype=np.float64)
    values[..., log] = np.log(values[..., log])
    return values
