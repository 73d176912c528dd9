"""GlobalFeatures: numbers per structure that a model gets as input.

Temperature, pressure and the like, standardised by mean and deviation of the training rows. It knows
nothing of torch.

S structures, G features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError

GLOBALS = "globals"
"""Key of global features in `batch.extras`."""
WHERE = "dataset.global_features"


@dataclass(frozen=True, eq=False)
class GlobalFeatures:
    """Names and scales of a model's global features."""

    names: tuple[str, ...]
    mean: np.ndarray
    """[G] float64 means."""
    std: np.ndarray
    """[G] float64 deviations; 1 where all training values are equal."""

    @classmethod
    def fit(cls, values: np.ndarray, rows: np.ndarray, names: Sequence[str]) -> GlobalFeatures:
        """Take mean and deviation of [S, G] over the training rows.

        Raises:
            AtomloomError: when one is not a finite number.
        """
        known = values[rows]
        if not np.isfinite(known).all():
            row, column = np.argwhere(~np.isfinite(known))[0]
            raise AtomloomError(
                f"{names[column]} of row {rows[row]} is {known[row, column]:g}", where=WHERE
            )
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = known.mean(axis=0), known.std(axis=0)
        for column in np.flatnonzero(~np.isfinite(mean + std)).tolist():
            raise AtomloomError(
                f"values of {names[column]}, of up to {np.abs(known[:, column]).max():.3g}, have squares that overflow",
                where=WHERE,
                todo="give them in another unit",
            )
        std[std <= 1e-12 * np.abs(known).max(axis=0)] = 1.0  # equal within rounding
        return cls(tuple(names), mean, std)

    def standardize(self, values: np.ndarray) -> np.ndarray:
        """Standardise [S, G]."""
        return (values - self.mean) / self.std

    def read(
        self,
        given: Mapping[str, Any] | np.ndarray | None,
        count: int,
        rows: np.ndarray | slice = slice(None),
    ) -> np.ndarray:
        """Standardised [count, G] from the user's input for `count` structures.

        Args:
            given: for each name one number, or one per structure; or an array [count, G] in the
                order of `names`.
            count: number of structures.
            rows: rows that are used; others may be unknown.

        Raises:
            AtomloomError: when something is missing, too much or not finite.
        """
        wanted = ", ".join(self.names)
        todo = f"give global_features={{...}} with {wanted}"
        if given is None:
            raise AtomloomError(f"the model needs {wanted} for every structure", todo=todo)
        if isinstance(given, Mapping):
            if set(given) != set(self.names):
                raise AtomloomError(
                    f"global features are {', '.join(given)}, not {wanted}", todo=todo
                )
            columns = [np.asarray(given[name], dtype=np.float64) for name in self.names]
            if any(column.shape not in ((), (count,)) for column in columns):
                raise AtomloomError(
                    f"global features are not one number for each of {count} structures"
                )
            values = np.stack([np.broadcast_to(column, (count,)) for column in columns], axis=1)
        else:
            values = np.asarray(given, dtype=np.float64)
            if values.shape != (count, len(self.names)):
                raise AtomloomError(
                    f"global features of shape {values.shape}, not {(count, len(self.names))}",
                    todo=todo,
                )
        if not np.isfinite(values[rows]).all():
            raise AtomloomError("a global feature is not a finite number", todo=todo)
        return self.standardize(values)

    def numbers(self) -> list[Any]:
        """Numbers that must be finite."""
        return [self.mean, self.std]

    def divisors(self) -> list[Any]:
        """Numbers that must be above zero."""
        return [self.std]

    def to_dict(self) -> dict[str, Any]:
        """Content for a model file."""
        return {"names": list(self.names), "mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> GlobalFeatures:
        """Inverse of `to_dict`."""
        mean, std = np.array(content["mean"]), np.array(content["std"])
        return cls(tuple(content["names"]), mean, std)
