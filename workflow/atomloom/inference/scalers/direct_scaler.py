"""DirectScaler: scaler between targets with their own heads and the numbers that a head learns.

Numbers per atom have a mean and a deviation by element: a moment of iron is large, one of oxygen almost
zero. Values that rotate with a structure have no mean, and one scale for all components. It knows nothing
of torch.

S structures, A atoms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.structures.elements import SYMBOLS, atomic_number
from atomloom.targets import TargetSpec

ELEMENTS = 119
LEAST_SHARE = 0.1
"""Min deviation of one element as a share of that of all elements, so that noise of an element that
hardly varies is not amplified."""


@dataclass(frozen=True, eq=False)
class DirectScaler:
    """Scaler z = (y - mean) / std, by element or for all."""

    mean: np.ndarray
    """[119] float64 by atomic number, or [1]; elements not in the training set have the mean of all."""
    std: np.ndarray
    """[119] or [1] float64, above zero."""
    seen: np.ndarray | None = None
    """[119] bool, the elements of the training atoms; None without means by element."""

    @classmethod
    def fit(
        cls, spec: TargetSpec, values: np.ndarray, training: np.ndarray, numbers: np.ndarray
    ) -> DirectScaler:
        """Take means and deviations over the training rows.

        Args:
            spec: the target.
            values: [S, ...] or [A, ...] in real units, NaN where unknown.
            training: [S] or [A] bool, whether they belong to training structures.
            numbers: [A] atomic numbers.

        Raises:
            AtomloomError: when no value is known, one is infinite, or they are too large.
        """
        if np.isinf(values).any():
            raise AtomloomError(f"a value of {spec.name} is infinite", where="targets")
        known = training & np.isfinite(values).reshape(len(values), -1).any(axis=1)
        if not known.any():
            raise AtomloomError(
                f"no training structure has a value of {spec.name}", where="targets"
            )
        own = values[known]
        by_element = spec.per == "atom" and not spec.shape
        with np.errstate(over="ignore", invalid="ignore"):
            found = (
                _by_element(own, numbers[known])
                if by_element
                else cls(np.zeros(1), np.array([_scale(np.sqrt(np.nanmean(own**2)), own)]))
            )
        if not (np.isfinite(found.mean).all() and np.isfinite(found.std).all()):
            raise AtomloomError(
                f"values of {spec.name} have squares that overflow",
                where="targets",
                todo="give them in another unit",
            )
        return found

    def standardize(self, values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Convert from real units to those of the head; `numbers` [A] as in `fit`."""
        mean, std = self._of(values, numbers)
        return (np.asarray(values, dtype=np.float64) - mean) / std

    def restore(self, outputs: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Inverse of `standardize`, in float64."""
        mean, std = self._of(outputs, numbers)
        return np.asarray(outputs, dtype=np.float64) * std + mean

    def _of(self, values: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each value, broadcast to its shape."""
        if self.seen is None:
            return self.mean[0], self.std[0]
        return self.mean[numbers], self.std[numbers]

    def numbers(self) -> list[Any]:
        """Numbers that must be finite."""
        return [self.mean, self.std]

    def divisors(self) -> list[Any]:
        """Numbers that must be above zero."""
        return [self.std]

    def to_dict(self) -> dict[str, Any]:
        """Content for a model file."""
        if self.seen is None:
            return {"std": float(self.std[0])}
        of_elements = {
            SYMBOLS[z]: [float(self.mean[z]), float(self.std[z])] for z in np.flatnonzero(self.seen)
        }
        other = int(np.flatnonzero(~self.seen)[0])
        return {
            "elements": of_elements,
            "others": [float(self.mean[other]), float(self.std[other])],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DirectScaler:
        """Inverse of `to_dict`."""
        if "elements" not in content:
            return cls(np.zeros(1), np.array([content["std"]], dtype=np.float64))
        mean, std = (np.full(ELEMENTS, value, dtype=np.float64) for value in content["others"])
        seen = np.zeros(ELEMENTS, dtype=bool)
        for symbol, values in content["elements"].items():
            z = atomic_number(symbol)
            mean[z], std[z] = values
            seen[z] = True
        return cls(mean, std, seen)


def _by_element(values: np.ndarray, numbers: np.ndarray) -> DirectScaler:
    mean, std = np.full(ELEMENTS, values.mean()), np.zeros(ELEMENTS)
    seen = np.bincount(numbers, minlength=ELEMENTS) > 0
    for z in np.flatnonzero(seen):
        own = values[numbers == z]
        mean[z], std[z] = own.mean(), own.std()
    rest = _scale(float((values - mean[numbers]).std()), values)
    std = np.where(seen, np.maximum(std, LEAST_SHARE * rest), _scale(float(values.std()), values))
    return DirectScaler(mean, std, seen)


def _scale(deviation: float, values: np.ndarray) -> float:
    """Deviation to divide by: 1 if all values are equal within rounding."""
    return float(deviation) if deviation > 1e-12 * max(np.nanmax(np.abs(values)), 1e-300) else 1.0
