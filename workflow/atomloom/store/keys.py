"""Content hashes: the name of an artefact is a hash of exactly what determines it.

This module turns specs (plain JSON values) and structures (arrays) into keys, and holds the version
integers that stand for code: raise `CONVERTER` when a converted structure's arrays change, `BUILDER`
when a graph's arrays change, `LABELLER` when a teacher's do, that of a source in `FEATURES` when its numbers
do, `PLANNER` when the plan joins other labels to the same records, `GUARD` when other structures are near duplicates, `TRAINER` when the same training
ends with other weights; a golden test fails if results change and the integer does not. It knows nothing
of files, configs or torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

PLANNER = 2
CONVERTER = 2
BUILDER = 1
TRAINER = 1
LABELLER = 1
FEATURES = {"composition": 1, "gamma_frequencies": 1, "embedding": 1}
GUARD = 2

HASH_BYTES = 32
POSITION_QUANTUM = 1e-8  # A; positions and cells are hashed rounded to this
FINGERPRINT_BYTES = 16


def canonical(value: Any) -> Any:
    """Reduce a spec to one form: sorted string keys, lists, and integers for all whole floats.

    `8` and `8.0`, a tuple and a list, and any order of keys become the same value.

    Raises:
        TypeError: for values that JSON cannot hold, NaN and infinities included.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if not math.isfinite(number):
            raise TypeError(f"{number} has no canonical form")
        return int(number) if number.is_integer() else number
    if isinstance(value, Mapping):
        return {str(key): canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [canonical(item) for item in items]
    raise TypeError(f"{type(value).__name__} has no canonical form")


def flat(content: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Values of nested mappings by dotted name, such as `training.batch.structures`."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{place}{name}.")
        else:
            found[f"{place}{name}"] = value
    return found


def canonical_json(value: Any) -> str:
    """Compact JSON of `canonical(value)`; equal specs give equal text."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def short_hash(value: Any) -> str:
    """Key of a spec: 16 hexadecimal characters (blake2b, 8 bytes, of its canonical JSON)."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=8).hexdigest()


def fingerprint(payload: bytes | memoryview) -> bytes:
    """Fingerprint of a raw record: 16 bytes that depend only on its bytes."""
    return hashlib.blake2b(payload, digest_size=FINGERPRINT_BYTES).digest()


def fingerprint_record(format: str, payload: bytes) -> bytes:
    """Fingerprint of a record as given to the reader of its format: 16 bytes."""
    return fingerprint(format.encode() + b"\0" + payload)


def chain_hash(parts: Iterable[bytes | str]) -> str:
    """Hash of an ordered sequence of byte strings or texts: 16 hexadecimal characters."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def structure_digest(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
) -> bytes:
    """Content hash of a structure: 32 bytes for elements, geometry and periodicity, nothing else.

    Positions and cell are rounded to 1e-8 A, so that text formats and -0.0 do not matter; file
    name, order of files and labels are not part of it.

    Args:
        numbers: [N] atomic numbers.
        positions: [N, 3] in A.
        cell: [3, 3] in A, rows are vectors.
        pbc: [3] booleans.
    """
    digest = hashlib.blake2b(digest_size=HASH_BYTES, person=b"atomloom")
    digest.update(len(numbers).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(numbers, dtype=np.uint8).tobytes())
    for lengths in (cell, positions):
        quanta = np.rint(np.asarray(lengths, dtype=np.float64) / POSITION_QUANTUM)
        digest.update(np.ascontiguousarray(quanta, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(pbc, dtype=np.uint8).tobytes())
    return digest.digest()


def array_digest(array: np.ndarray) -> str:
    """Digest of an array's type, shape and bytes, as recorded in shards for `verify`."""
    data = np.ascontiguousarray(array)
    return parts_digest(data.dtype, data.shape, [data])


def parts_digest(dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> str:
    """Digest as by `array_digest`, of an array of this type and shape given in consecutive parts."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{dtype.str}{shape}".encode())
    for part in parts:
        data = np.ascontiguousarray(part)
        digest.update(data.view(np.uint8).data if data.size else b"")
    return digest.hexdigest()
