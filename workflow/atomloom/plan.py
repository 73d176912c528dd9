"""The plan: which records a data set has and how they are cut into chunks, as small files.

Read by the workflow whenever it is parsed, so nothing heavy is imported here; `atomloom.stages.plan`
makes it. A chunk is named by the fingerprints of its records, in order, and by how they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atomloom.files import read_json, write_json


@dataclass(frozen=True)
class Chunk:
    """Records `first` to `first + count` of the plan, converted and built by one job each."""

    key: str
    first: int
    count: int


@dataclass(frozen=True)
class Plan:
    """What `plan.json` says."""

    chunks: tuple[Chunk, ...]
    records: int
    """Number of raw records."""
    members_digest: str
    """Names the ordered ids and fingerprints of all records."""
    labels_digest: str
    """Names the label values that belong to the records, in order."""
    fixed_digest: str
    """Names what says from outside which records are the test set (a folds file, names of source
    files); empty where nothing does."""
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
        write_json(path, content)

    @classmethod
    def read(cls, path: Path | str) -> Plan:
        """Read `plan.json`."""
        content = read_json(Path(path))
        content["chunks"] = tuple(Chunk(*chunk) for chunk in content["chunks"])
        return cls(**content)


def cut_chunks(
    fingerprints: Sequence[bytes], mean: int, least: int, greatest: int
) -> Iterator[tuple[int, int]]:
    """Cut records into chunks where their own content says so; yields (first, count).

    A record closes a chunk when its fingerprint is 0 modulo `mean - least + 1`, once the chunk
    holds `least` records; `greatest` closes it in any case. Boundaries depend on nothing before
    the last one, so inserting, removing or changing a record changes the chunk it is in and seldom
    its neighbour (content-defined chunking, as in Muthitacharoen, Chen and Mazieres, SOSP 2001).
    """
    modulus = max(mean - least + 1, 1)
    first = 0
    for position, fingerprint in enumerate(fingerprints):
        count = position + 1 - first
        closes = int.from_bytes(fingerprint[:8], "little") % modulus == 0
        if count >= greatest or (count >= least and closes):
            yield first, count
            first = position + 1
    if first < len(fingerprints):
        yield first, len(fingerprints) - first
