"""The quarantine table: every record that is not used, with its source, number and reason.

It knows nothing of why a record is refused; stages add rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from atomloom.errors import AtomloomError, legible
from atomloom.store.files import write_atomically

QUARANTINE = "quarantine.csv"
"""Name of the table of a job that succeeded."""
TOO_MUCH = "quarantine-too-much.csv"
"""Name of the table of a job that stopped because of too many rows."""
COLUMNS = ("id", "source", "record", "reason")


@dataclass
class Quarantine:
    """Refused records of one data set."""

    ids: np.ndarray
    sources: np.ndarray
    numbers: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    """Reason by row of the plan; the first one given is kept."""

    @classmethod
    def of(cls, members: pd.DataFrame) -> Quarantine:
        """Create an empty quarantine over the plan's members (columns id, source, number)."""
        return cls(*(members[name].to_numpy() for name in ("id", "source", "number")))

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, record: int, reason: str) -> None:
        """Refuse the record in this row of the plan."""
        self.reasons.setdefault(int(record), legible(" ".join(str(reason).split())))

    def count(self, words: str) -> int:
        """Number of records whose reason has these words."""
        return sum(words in reason for reason in self.reasons.values())

    def frame(self) -> pd.DataFrame:
        """Columns id, source, record (number within its source), reason; in the order of the plan."""
        rows = sorted(self.reasons)
        return pd.DataFrame(
            {
                "id": self.ids[rows],
                "source": self.sources[rows],
                "record": self.numbers[rows],
                "reason": [self.reasons[row] for row in rows],
            },
            columns=list(COLUMNS),
        )

    def write(self, path: Path) -> None:
        """Write the table as CSV."""
        write_atomically(path, lambda temporary: self.frame().to_csv(temporary, index=False))

    def close(self, folder: Path, max_fraction: float) -> None:
        """Write the table into a folder, and stop when too many records are refused.

        The workflow removes the outputs of a failed job, including `quarantine.csv`: the error names a
        copy that the workflow does not know.

        Args:
            folder: to write into.
            max_fraction: max fraction of the records in quarantine.

        Raises:
            AtomloomError: when more than that is in quarantine, or nothing is left.
        """
        self.write(folder / QUARANTINE)
        total, path = len(self.ids), folder / TOO_MUCH
        if len(self) <= max_fraction * total and len(self) < total:
            path.unlink(missing_ok=True)
            return
        self.write(path)
        rows = self.frame()
        kinds = [reason_kind(row.reason, names=(row.source, row.id)) for row in rows.itertuples()]
        commonest, count = Counter(kinds).most_common(1)[0]
        first = rows.iloc[kinds.index(commonest)]
        often = "" if count == len(self) else f"{count} of them are like the first: "
        raise AtomloomError(
            f"{len(self)} of {total} records are in quarantine, more than the allowed "
            f"{max_fraction:.3g} of all ({often}{first['id']}, {first['reason']})",
            where=path,
            todo="repair them or raise dataset.checks.max_fraction",
        )


def reason_kind(reason: str, names: Sequence[str] = ()) -> str:
    """Reason without the parts specific to one record: its numbers, its advice, and these names."""
    kind = reason.split(";")[0]
    for name in names:
        # Short names ("1", "a") would be cut out of the middle of words.
        for text in (name, Path(name).name):
            kind = kind.replace(text, "") if len(text) > 2 else kind
    kind = re.sub(r"[^\s,:()]*\d[^\s,:()]*", "…", kind)
    return " ".join(kind.split()).strip(" :,").removeprefix("…: ") or "no reason given"
