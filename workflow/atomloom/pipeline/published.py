"""Comparison of a run's errors with published ones: reached, not reached, or not measured.

It knows metrics as the mapping that `metrics.json` holds, and nothing of how they came about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atomloom.config.published import Published, PublishedError

REACHED, NOT_REACHED, NOT_MEASURED = "reached", "not reached", "not measured"


@dataclass(frozen=True)
class Verdict:
    """A published error, and the one that was measured."""

    published: PublishedError
    source: str
    unit: str
    ours: float | None
    """Measured error; of several folds, the mean. None where there is none."""
    folds: int
    """Number of folds that were measured."""
    wanted: int
    """Number of folds that the published error is a mean of."""
    others: tuple[int, ...] = ()
    """Numbers of values of errors left out because they are of another test set."""

    @property
    def state(self) -> str:
        """`reached`, `not reached` or `not measured`."""
        if self.ours is None or self.folds < self.wanted:
            return NOT_MEASURED
        return REACHED if self.ours <= self.published.limit else NOT_REACHED

    @property
    def reason(self) -> str:
        """The reason why something was not measured, in parentheses; empty without."""
        if self.others:
            return f" (over {self.others[0]:,} test values, not {self.published.count:,})"
        return f" ({self.folds} of {self.wanted} folds)" if 0 < self.folds < self.wanted else ""

    @property
    def line(self) -> str:
        """The comparison in one line."""
        error = self.published
        unit = f" {self.unit}" if self.unit else ""
        theirs = f"{self.source}: {error.metric.upper()} of {error.target} {error.value:.4g}{unit}"
        if self.ours is None:
            return f"{theirs}; {self.state}{self.reason}"
        ours = f"ours {self.ours:.4g}{unit}"
        if self.folds < self.wanted:
            return f"{theirs}; {ours}: {self.state}{self.reason}"
        return f"{theirs}; {ours}: {self.state} (allowed: {100 * error.gap:.3g} % above)"


def verdicts(
    published: Published | None, metrics: Sequence[Mapping[str, Any]], units: Mapping[str, str]
) -> list[Verdict]:
    """Compare the test errors of some runs, one per fold, with the published errors.

    Args:
        published: the section of the config; None gives an empty list.
        metrics: contents of `metrics.json`, one per fold.
        units: units by target, as errors are reported.
    """
    if published is None:
        return []
    found = []
    for error in published.errors:
        tests = [test for one in metrics if (test := _test_error(one, error)) is not None]
        ours = [value for value, count in tests if _same_set(error, count, published.folds)]
        others = [count for _, count in tests if not _same_set(error, count, published.folds)]
        found.append(
            Verdict(
                error,
                published.source,
                units.get(error.target, ""),
                sum(ours) / len(ours) if ours else None,
                len(ours),
                published.folds,
                tuple(others),
            )
        )
    return found


def _same_set(error: PublishedError, count: int, folds: int) -> bool:
    """Whether a number of test values is the published one; folds may differ by one structure."""
    return error.count is None or error.count - (folds > 1) <= count <= error.count


def _test_error(metrics: Mapping[str, Any], error: PublishedError) -> tuple[float, int] | None:
    """Finite test error of this kind and its number of values; None where the metrics have none."""
    target = metrics.get(error.target)
    values = target.get("test") if isinstance(target, Mapping) else None
    if not isinstance(values, Mapping):
        return None
    value = values.get(error.metric)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value), int(values.get("count") or 0)
