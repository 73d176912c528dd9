"""The `published` section: errors from a paper or a leaderboard that a run of this config is held against.

It is in no key: what others have published changes no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from atomloom.config.base import Section


class PublishedError(Section):
    """One published error."""

    target: str
    """Target, as metrics.json names it (for a potential `energy_per_atom`, `forces`, `stress`)."""
    metric: Literal["mae", "rmse"] = "mae"
    """Kind of error, on the test set."""
    value: float = Field(gt=0, le=1e9)
    """Published value, in the unit of the target."""
    gap: float = Field(default=0.1, ge=0, le=10)
    """Allowed gap, as a share of the value: 0.1 counts errors up to 10 % above it as reached."""
    count: int | None = Field(default=None, ge=1, le=10**12)
    """Number of values in the published test set, as metrics.json counts them (force components); of several
    folds, in the largest. An error over another number of values does not count. null: any."""

    @property
    def limit(self) -> float:
        """Largest error that counts as reached."""
        return self.value * (1 + self.gap)


class Published(Section):
    """Published errors on the same data, beside which the report and `atomloom leaderboard` show those of a
    run."""

    source: str = Field(min_length=1)
    """Paper or leaderboard, with its identifier."""
    errors: list[PublishedError] = Field(min_length=1)
    """Published errors; a single one needs no list."""
    folds: int = Field(default=1, ge=1, le=100)
    """Number of folds over which they are means; runs are needed with `split.fold` 0, 1, ..."""
    data: str = ""
    """Origin of the data, which the error of a missing file names."""

    @field_validator("errors", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _each_once(self) -> Published:
        named = [(error.target, error.metric) for error in self.errors]
        if len(set(named)) < len(named):
            raise ValueError("an error of a target is named twice")
        return self
