"""History of a run: one row per epoch, as a CSV and as lines of the log."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atomloom.store.files import write_text

NAMED_TARGETS = 3  # errors of more targets than this do not fit on a line


class History:
    """Rows of history.csv.

    Columns: epoch (from 1), step, learning_rate (of the last step), train_loss and val_loss (of
    standardised targets; train_loss while the weights change), val_mae in real units (val_mae_NAME
    where there are several targets), seconds, and of these data_, forward_, backward_, optimizer_
    and validation_seconds.
    """

    def __init__(self, targets: Sequence[str], rows: Sequence[dict[str, Any]] = ()) -> None:
        single = len(targets) == 1
        self.mae_columns = ["val_mae"] if single else [f"val_mae_{name}" for name in targets]
        self.rows: list[dict[str, Any]] = list(rows)

    def add(
        self,
        *,
        epoch: int,
        step: int,
        learning_rate: float,
        train_loss: float,
        val_loss: float,
        maes: Sequence[float],
        seconds: float,
        parts: Mapping[str, float],
    ) -> None:
        """Add an epoch; `maes` is empty without validation rows."""
        self.rows.append(
            {
                "epoch": epoch,
                "step": step,
                "learning_rate": learning_rate,
                "train_loss": train_loss,
                "val_loss": val_loss,
                **dict(
                    zip(
                        self.mae_columns,
                        maes or [float("nan")] * len(self.mae_columns),
                        strict=True,
                    )
                ),
                "seconds": seconds,
                **{f"{name}_seconds": value for name, value in parts.items()},
            }
        )

    def least(self, column: str) -> float:
        """Lowest error in a column so far; NaN without one."""
        known = [row[column] for row in self.rows if math.isfinite(row[column])]
        return min(known, default=math.nan)

    def write(self, path: Path) -> None:
        """Write the CSV atomically."""
        if not self.rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        # Times to the microsecond; everything else with all digits.
        writer.writerows(
            {k: round(v, 6) if is_time(k) else v for k, v in row.items()} for row in self.rows
        )
        write_text(path, text.getvalue())


def is_time(column: str) -> bool:
    """Whether a column of the history holds seconds; a target may also have such a name."""
    return column.endswith("seconds") and not column.startswith("val_mae")


def progress_line(
    history: History,
    epochs: int,
    targets: Sequence[str],
    units: Sequence[str],
    epoch_seconds: float,
) -> str:
    """Line on the last epoch, with the lowest error so far of each target, such as
    `epoch  12/100  train 0.0312  val MAE 45.1 cm^-1 (best 44.0)  lr 8.1e-04  3.2 s (data 2 %)  ETA 4:40`.
    """
    row = history.rows[-1]
    width = len(str(epochs))
    shown = list(zip(targets, units, history.mae_columns, strict=True))[:NAMED_TARGETS]
    if not any(math.isfinite(row[column]) for column in history.mae_columns):
        shown = []  # nothing is validated
    named = len(targets) > 1
    errors = ", ".join(
        f"{f'{name} ' if named else ''}{row[column]:.4g} {unit}".rstrip()
        + f" (best {history.least(column):.4g})"
        for name, unit, column in shown
    )
    if len(targets) > len(shown) > 0:
        errors += ", ..."
    data = 100 * row["data_seconds"] / max(row["seconds"], 1e-9)
    return "  ".join(
        part
        for part in (
            f"epoch {row['epoch']:>{width}}/{epochs}",
            f"train {row['train_loss']:.4g}",
            f"val MAE {errors}" if errors else "",
            f"lr {row['learning_rate']:.1e}",
            f"{row['seconds']:.3g} s (data {data:.0f} %)",
            f"ETA {duration((epochs - row['epoch']) * epoch_seconds)}",
        )
        if part
    )


def duration(seconds: float) -> str:
    """Duration such as `4:40`, or `1:04:40` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
