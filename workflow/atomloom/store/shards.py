"""Shards: named arrays in one file, Zarr format 3 in a zip, verifiable and never partly read.

`write_shard` lays out what zarr-python's ZipStore would (group `zarr.json`, `NAME/zarr.json`, chunks
under `NAME/c/`), but writes it directly: zarr-python needs some 60 ms of event loop for a file that
takes 10. Each array is one chunk unless it is over 64 MiB, Blosc zstd with bit shuffle, little
endian. Group attributes hold those of the caller, the digest of every array and the versions of the
libraries; digests, not versions, decide whether two shards are equal. This module knows nothing of
structures, graphs or torch.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numcodecs.zstd
import numpy as np

from atomloom.errors import AtomloomError
from atomloom.store.files import open_plain, write_atomically
from atomloom.store.keys import array_digest, canonical, parts_digest

# Blosc's threads write blocks in the order they finish, so bytes would differ from run to run.
numcodecs.blosc.use_threads = False

SUFFIX = ".zarr.zip"
CHUNK_BYTES = 64 * 2**20
REPAIR = "run `atomloom repair`"

MAX_EXPANSION = 1000
"""Max ratio of an array's bytes to those of its shard; larger arrays of several chunks are refused."""
SLACK = 1 << 16
"""Max bytes of a packed chunk beyond its content, and of the description of an array."""
MAX_CHUNKS = 1 << 16
"""Max number of chunks of one array."""

LIBRARIES = ("atomloom", "numba", "numcodecs", "numpy", "spglib")
RESERVED = ("digests", "libraries")
"""Attributes that `write_shard` sets itself."""

_LEVEL = 3
_BITSHUFFLE = 2
_EPOCH = (1980, 1, 1, 0, 0, 0)
_TYPES = frozenset(
    np.dtype(code) for code in ("?", *"bhilBHILqQ", "<f2", "<f4", "<f8", "<c8", "<c16")
)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Array in parts along its first axis, which `write_shard` never joins."""

    parts: Sequence[np.ndarray]
    """At least one part; all of one type and, except for the first axis, one shape."""

    @property
    def dtype(self) -> np.dtype:
        """Type of all parts."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return (sum(map(len, self.parts)), *self.parts[0].shape[1:])

    def __getitem__(self, rows: slice) -> np.ndarray:
        begin, end, _ = rows.indices(self.shape[0])
        found, first = [self.parts[0][:0]], 0
        for part in self.parts:
            found.append(part[max(begin - first, 0) : max(end - first, 0)])
            first += len(part)
        return np.concatenate(found)


def write_shard(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray | Blocks],
    attributes: Mapping[str, Any],
) -> None:
    """Write arrays and attributes as one shard, completely or not at all.

    The file appears under a temporary name in the same folder, is flushed to disk and then renamed,
    so a killed writer leaves no shard and of two writers the last one wins. The same arrays and
    attributes give the same bytes with the same libraries, in any order of names.

    Args:
        path: of the shard; its folder is created if needed.
        arrays: numeric or boolean arrays of any shape, by name.
        attributes: JSON values; `digests` and `libraries` are always set again.

    Raises:
        TypeError: for arrays or attributes that have no portable form (objects, text, NaN).
    """
    path = Path(path)
    ready = {name: _portable(name, arrays[name]) for name in sorted(arrays)}
    attributes = {key: value for key, value in attributes.items() if key not in RESERVED}
    attributes["digests"] = {
        name: parts_digest(array.dtype, array.shape, array.parts)
        if isinstance(array, Blocks)
        else array_digest(array)
        for name, array in ready.items()
    }
    attributes["libraries"] = library_versions()
    group = {"attributes": canonical(attributes), "node_type": "group", "zarr_format": 3}
    description = _json(group)  # values without a JSON form are refused before a file is begun

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, "zarr.json", description)
            for name, array in ready.items():
                chunk_shape = _chunk_shape(array)
                _add(archive, f"{name}/zarr.json", _json(_array_metadata(array, chunk_shape)))
                for key, chunk in _chunks(array, chunk_shape):
                    data = numcodecs.blosc.compress(
                        chunk, b"zstd", _LEVEL, _BITSHUFFLE, 0, array.dtype.itemsize
                    )
                    _add(archive, f"{name}/{key}", data)

    write_atomically(path, write)


def read_shard(
    path: str | os.PathLike[str], names: Iterable[str] | None = None, *, verify: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read arrays and attributes of a shard.

    Args:
        path: the shard.
        names: of the arrays to read; all if None.
        verify: recompute each array's digest (about 1 ms per MB). Checksums of the zip are always
            checked.

    Raises:
        AtomloomError: if the file is absent, truncated, altered, not a shard, or lacks one of
            `names`. Nothing of a damaged file is returned.
    """
    shard = _Shard(Path(path))
    wanted = shard.names if names is None else list(names)
    arrays = {}
    for name in wanted:
        if name not in shard.names:
            raise AtomloomError(f"has no array `{name}`, only {', '.join(shard.names)}", where=path)
        arrays[name] = shard.array(name, verify)
    return arrays, shard.attributes


def read_attributes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read attributes of a shard, without its arrays.

    Raises:
        AtomloomError: as `read_shard`.
    """
    return _Shard(Path(path)).attributes


def reasons_in(
    attributes: Mapping[str, Any], name: str, path: str | os.PathLike[str]
) -> list[tuple[int, str]]:
    """Read the attribute of a shard that lists refused rows: (row, reason) of each.

    Raises:
        AtomloomError: when it is missing, or not such a list.
    """
    rows = attributes.get(name)
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and [type(item) for item in row] == [int, str] for row in rows
    ):
        raise AtomloomError(f"has no list of rows and reasons `{name}`", where=path, todo=REPAIR)
    return [(place, reason) for place, reason in rows]


def verify_shard(path: str | os.PathLike[str]) -> list[str]:
    """List the damage of a shard, one sentence per item; empty if it is intact."""
    try:
        shard = _Shard(Path(path))
    except AtomloomError as error:
        return [error.what]
    damage = []
    for name in shard.names:
        try:
            shard.array(name, verify=True)
        except AtomloomError as error:
            damage.append(error.what)
    return damage


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that can affect a shard's bytes."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


class _Shard:
    """Opened shard: the whole file in memory, its attributes and the names of its arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_plain(path) as file:
                content = file.read()
        except FileNotFoundError:
            raise AtomloomError("no such shard", where=path, todo=REPAIR) from None
        except OSError as error:
            raise AtomloomError(f"cannot be read: {error.strerror}", where=path) from error
        self.limit = max(CHUNK_BYTES, MAX_EXPANSION * len(content))
        self.archive, group = self._guard(
            "is not a complete shard", lambda: _open_group(content, max(CHUNK_BYTES, len(content)))
        )
        self.attributes: dict[str, Any] = group.get("attributes", {})
        digests = self.attributes.get("digests")
        if group.get("node_type") != "group" or not isinstance(digests, dict):
            raise self._damage("is not a shard of atomloom: it has no digests")
        self.digests = digests
        stored = {
            key.removesuffix("/zarr.json")
            for key in self.archive.NameToInfo
            if key.endswith("/zarr.json")
        }
        if stored != set(digests):
            odd = ", ".join(sorted(stored ^ set(digests)))
            raise self._damage(f"arrays and recorded digests disagree: {odd}")
        self.names = sorted(digests)

    def array(self, name: str, verify: bool) -> np.ndarray:
        array, complete = self._guard(
            f"array `{name}` is damaged", lambda: _read_array(self.archive, name, self.limit)
        )
        # To Zarr a missing chunk means fill value; only the digest distinguishes it from a lost one.
        if (verify or not complete) and array_digest(array) != self.digests[name]:
            raise self._damage(f"array `{name}` is damaged: its digest differs")
        return array

    def _guard(self, what: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            # Damaged bytes raise almost any exception of zipfile, json, numcodecs or numpy.
            raise self._damage(f"{what} ({_first_line(error)})") from error

    def _damage(self, what: str) -> AtomloomError:
        return AtomloomError(what, where=self.path, todo=REPAIR)


def _open_group(content: bytes, limit: int) -> tuple[zipfile.ZipFile, dict[str, Any]]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    group = json.loads(_member(archive, "zarr.json", limit))
    if group["zarr_format"] != 3:
        raise ValueError(f"Zarr format {group['zarr_format']}, not 3")
    return archive, group


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Read a file of the zip, unless it unpacks to more than `limit` bytes."""
    if archive.getinfo(name).file_size > limit:
        raise ValueError(f"{name} unpacks to more than {limit >> 20} MiB")
    return archive.read(name)


def _read_array(archive: zipfile.ZipFile, name: str, limit: int) -> tuple[np.ndarray, bool]:
    """Read an array, and whether every chunk of it was there."""
    info = json.loads(_member(archive, f"{name}/zarr.json", SLACK))
    shape = tuple(info["shape"])
    dtype = np.dtype(info["data_type"]).newbyteorder("<")
    grid, keys = info["chunk_grid"], info["chunk_key_encoding"]
    if grid["name"] != "regular" or keys["name"] != "default":
        raise ValueError(f"{grid['name']} chunks with {keys['name']} keys")
    chunk_shape = tuple(grid["configuration"]["chunk_shape"])
    separator = keys.get("configuration", {}).get("separator", "/")
    decode = _decoder(info["codecs"])
    if dtype not in _TYPES or len(chunk_shape) != len(shape):
        raise ValueError(f"data type {dtype}, chunks {chunk_shape} of an array {shape}")
    counts = [-(-extent // step) for extent, step in zip(shape, chunk_shape, strict=True)]
    size = math.prod(chunk_shape) * dtype.itemsize
    if max(size, math.prod(shape) * dtype.itemsize) > limit or math.prod(counts) > MAX_CHUNKS:
        raise ValueError(f"an array {shape} in chunks {chunk_shape} in a file of this size")

    fill = complex(*info["fill_value"]) if dtype.kind == "c" else info["fill_value"]
    array = np.empty(shape, dtype)
    complete = True
    for index in np.ndindex(*counts):
        key = separator.join(["c", *map(str, index)])
        where = tuple(
            slice(i * step, (i + 1) * step) for i, step in zip(index, chunk_shape, strict=True)
        )
        if f"{name}/{key}" not in archive.NameToInfo:
            array[where], complete = fill, False
            continue
        data = decode(_member(archive, f"{name}/{key}", size + SLACK), size)
        chunk = np.frombuffer(data, dtype).reshape(chunk_shape)
        if chunk_shape == shape:
            # The decoder's buffer is not shared; only bytes objects would be read-only.
            return (chunk if chunk.flags.writeable else chunk.copy()), True
        # Chunks at the far border are stored in full size.
        part = array[where]
        array[where] = chunk[tuple(slice(0, extent) for extent in part.shape)]
    return array, complete


def _decoder(codecs: list[dict[str, Any]]) -> Callable[[bytes, int], Any]:
    """Function that decodes chunks of an array, from packed bytes and the size of their content."""
    first, *rest = codecs
    if first["name"] != "bytes" or first.get("configuration", {}).get("endian", "little") != (
        "little"
    ):
        raise ValueError(f"codec {first}")
    names = [codec["name"] for codec in rest]
    known: dict[str, Callable[[bytes, int], Any]] = {
        "blosc": _blosc_decompress,
        "zstd": _zstd_decompress,
        "gzip": _gzip_decompress,
    }
    if not names:
        return lambda data, size: data
    if len(names) > 1 or names[0] not in known:
        raise ValueError(f"unknown codec {', '.join(names)}")
    return known[names[0]]


def _blosc_decompress(data: bytes, size: int) -> np.ndarray:
    # The header's bytes 4 to 8 hold the decompressed size; decoding into a separate buffer saves
    # the copy that a bytes object would need to become writeable.
    if int.from_bytes(data[4:8], "little") != size:
        raise ValueError(f"a chunk that is not of {size} bytes")
    out = np.empty(size, np.uint8)
    numcodecs.blosc.decompress(data, out)
    return out


def _zstd_decompress(data: bytes, size: int) -> np.ndarray:
    out = np.empty(size, np.uint8)
    numcodecs.zstd.decompress(data, out)
    return out


def _gzip_decompress(data: bytes, size: int) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, size + 1)


def _portable(name: str, array: np.ndarray | Blocks) -> np.ndarray | Blocks:
    if isinstance(array, Blocks):
        return Blocks([np.asarray(_portable(name, part)) for part in array.parts])
    array = np.asarray(array)
    if array.dtype.newbyteorder("<") not in _TYPES:
        raise TypeError(f"array `{name}` of type {array.dtype} has no portable form")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _chunk_shape(array: np.ndarray | Blocks) -> tuple[int, ...]:
    shape, size = array.shape, math.prod(array.shape) * array.dtype.itemsize
    if not shape or size <= CHUNK_BYTES:
        # Zarr requires chunks of at least one element even where the array has none.
        return tuple(max(extent, 1) for extent in shape)
    rows = max(CHUNK_BYTES // (size // shape[0]), 1)
    return (rows, *shape[1:])


def _chunks(
    array: np.ndarray | Blocks, chunk_shape: tuple[int, ...]
) -> Iterable[tuple[str, np.ndarray]]:
    """Iterate over a chunk's key and its full-size content; none for an array without elements."""
    if 0 in array.shape:
        return
    if isinstance(array, np.ndarray) and array.ndim == 0:
        yield "c", array.reshape(1)
        return
    rest = "/0" * (len(array.shape) - 1)
    for number in range(math.ceil(array.shape[0] / chunk_shape[0])):
        chunk = array[number * chunk_shape[0] : (number + 1) * chunk_shape[0]]
        if len(chunk) < chunk_shape[0]:
            padding = np.zeros((chunk_shape[0] - len(chunk), *chunk_shape[1:]), array.dtype)
            chunk = np.concatenate([chunk, padding])
        yield f"c/{number}{rest}", chunk


def _array_metadata(array: np.ndarray | Blocks, chunk_shape: tuple[int, ...]) -> dict[str, Any]:
    fill: Any = {"b": False, "f": 0.0, "c": [0.0, 0.0]}.get(array.dtype.kind, 0)
    blosc = {
        "blocksize": 0,
        "clevel": _LEVEL,
        "cname": "zstd",
        "shuffle": "bitshuffle",
        "typesize": array.dtype.itemsize,
    }
    return {
        "attributes": {},
        "chunk_grid": {"configuration": {"chunk_shape": list(chunk_shape)}, "name": "regular"},
        "chunk_key_encoding": {"configuration": {"separator": "/"}, "name": "default"},
        "codecs": [
            {"configuration": {"endian": "little"}, "name": "bytes"},
            {"configuration": blosc, "name": "blosc"},
        ],
        "data_type": array.dtype.name,
        "fill_value": fill,
        "node_type": "array",
        "shape": list(array.shape),
        "storage_transformers": [],
        "zarr_format": 3,
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
