"""The plan: records of a data set and how they are cut into chunks, as small files.

Read by the workflow whenever it is parsed, so nothing heavy is imported here; `atomloom.stages.plan`
makes it. A chunk is named by the fingerprints of its records, in order, and by how they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from atomloom.errors import AtomloomError, again
from atomloom.store.files import read_json, write_sealed

SPOOL = -1
"""File number of records whose bytes are in the spool."""
_KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Chunk:
    """Records `first` to `first + count` of the plan, converted by one job and built by another."""

    key: str
    first: int
    count: int


@dataclass(frozen=True)
class Plan:
    """Content of `plan.json`."""

    chunks: tuple[Chunk, ...]
    records: int
    """Number of raw records."""
    members_digest: str
    """Digest of the ordered ids and fingerprints of all records."""
    labels_digest: str
    """Digest of the label values of the records, in order."""
    fixed_digest: str
    """Digest of external definitions of the test set (a folds file, names of source files); empty
    without."""
    labels_without_record: int
    """Rows of the label table that no record claimed."""

    @property
    def chunk_keys(self) -> list[str]:
        """Keys of the chunks, each once, in order of first use."""
        return list(dict.fromkeys(chunk.key for chunk in self.chunks))

    def write(self, path: Path) -> None:
        """Write `plan.json`."""
        content: dict[str, Any] = asdict(self)
        content["chunks"] = [[chunk.key, chunk.first, chunk.count] for chunk in self.chunks]
        write_sealed(path, content)

    @classmethod
    def read(cls, path: Path | str) -> Plan:
        """Read `plan.json`.

        Raises:
            AtomloomError: when it is missing or damaged, or its chunks are not those of its records.
        """
        path = Path(path)
        content = read_json(path, *(item.name for item in fields(cls)), todo=again("plan"))
        try:
            content["chunks"] = tuple(Chunk(*chunk) for chunk in content["chunks"])
            plan = cls(**content)
            _require_cover(plan)
        except (TypeError, ValueError) as error:
            raise AtomloomError(f"is not a plan: {error}", where=path, todo=again("plan")) from None
        return plan


def _require_cover(plan: Plan) -> None:
    """Raise ValueError unless the chunks cover the records, one after another."""
    end = 0
    for chunk in plan.chunks:
        if not _KEY.fullmatch(chunk.key) or chunk.first != end or chunk.count < 1:
            raise ValueError(f"chunk {chunk.key} does not follow the one before")
        end += chunk.count
    if end != plan.records:
        raise ValueError(f"its chunks hold {end} of {plan.records} records")


def cut_chunks(
    fingerprints: Sequence[bytes], mean: int, min_size: int, max_size: int
) -> Iterator[tuple[int, int]]:
    """Cut records into chunks at content-defined boundaries; yields (first, count).

    A record closes a chunk when its fingerprint is 0 modulo `mean - min_size + 1`, once the chunk
    holds `min_size` records; `max_size` closes it in any case. Boundaries depend on nothing before
    the last one, so inserting, removing or changing a record changes the chunk it is in and seldom
    its neighbour (content-defined chunking, as in Muthitacharoen, Chen and Mazieres, SOSP 2001).
    """
    modulus = max(mean - min_size + 1, 1)
    first = 0
    for position, fingerprint in enumerate(fingerprints):
        count = position + 1 - first
        closes = int.from_bytes(fingerprint[:8], "little") % modulus == 0
        if count >= max_size or (count >= min_size and closes):
            yield first, count
            first = position + 1
    if first < len(fingerprints):
        yield first, len(fingerprints) - first
