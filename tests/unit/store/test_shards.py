"""A shard is whole or an error, the same bytes everywhere, and plain Zarr to others."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from atomloom.errors import AtomloomError
from atomloom.store import files, shards
from atomloom.store.shards import Blocks, read_attributes, read_shard, verify_shard, write_shard

ATTRIBUTES = {"spec": {"cutoff": 8.0, "neighbors": "knn"}, "builder": 1}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "positions": rng.normal(size=(50, 3)),
        "src": rng.integers(0, 60_000, 400).astype(np.uint16),
        "shift": rng.integers(-2, 3, (400, 3)).astype(np.int8),
        "pbc": rng.random((5, 3)) > 0.5,
        "node_ptr": np.arange(6) * 10,
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5),
    }


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return sorted(left) == sorted(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def test_round_trip_keeps_type_shape_and_bits(tmp_path, arrays):
    path = tmp_path / "deep" / "a.zarr.zip"
    write_shard(path, arrays, ATTRIBUTES)
    found, attributes = read_shard(path)
    assert same(found, arrays)
    assert all(array.flags.writeable for array in found.values())
    assert attributes["spec"] == ATTRIBUTES["spec"]
    assert attributes["libraries"]["numpy"] == np.__version__
    assert read_attributes(path) == attributes
    assert verify_shard(path) == []
    assert os.listdir(path.parent) == ["a.zarr.zip"]


@given(
    st.lists(st.integers(0, 5), min_size=0, max_size=3),
    st.sampled_from(["bool", "int8", "uint16", "int64", "float32", "float64", "complex128", ">f8"]),
)
@settings(max_examples=40)
def test_any_numeric_array_survives(tmp_path_factory, shape, dtype):
    path = tmp_path_factory.mktemp("any") / "x.zarr.zip"
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    write_shard(path, {"x": array}, {})
    found = read_shard(path)[0]["x"]
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(found, array)


def test_only_named_arrays_are_read(tmp_path, arrays):
    path = tmp_path / "a.zarr.zip"
    write_shard(path, arrays, {})
    assert list(read_shard(path, ["src", "pbc"])[0]) == ["src", "pbc"]
    with pytest.raises(AtomloomError, match=r"a\.zarr\.zip: has no array `dst`"):
        read_shard(path, ["dst"])


def test_zarr_python_reads_ours(tmp_path, arrays):
    path = tmp_path / "a.zarr.zip"
    write_shard(path, arrays, ATTRIBUTES)
    with zarr.storage.ZipStore(path, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        assert group.metadata.zarr_format == 3
        assert group.attrs["builder"] == 1
        assert same({name: np.asarray(array[...]) for name, array in group.arrays()}, arrays)
        codec = group["src"].metadata.codecs[-1].to_dict()
    assert codec["name"] == "blosc"
    assert codec["configuration"]["shuffle"] == "bitshuffle"
    assert codec["configuration"]["cname"] == "zstd"


@pytest.mark.parametrize("compressors", ["auto", None, "blosc", "gzip"])
def test_we_read_zarr_pythons(tmp_path, arrays, compressors):
    ours, theirs = tmp_path / "ours.zarr.zip", tmp_path / "theirs.zarr.zip"
    write_shard(ours, arrays, ATTRIBUTES)
    chosen = {"blosc": zarr.codecs.BloscCodec(), "gzip": zarr.codecs.GzipCodec()}
    with zarr.storage.ZipStore(theirs, mode="w") as store:
        group = zarr.create_group(store, attributes=read_attributes(ours))
        for name, array in arrays.items():
            # Small chunks that do not divide the array, some of them all zeros and so not stored.
            chunks = tuple(min(7, max(extent, 1)) for extent in array.shape)
            group.create_array(
                name, data=array, chunks=chunks, compressors=chosen.get(compressors, compressors)
            )
    found, attributes = read_shard(theirs)
    assert same(found, arrays)
    assert attributes == read_attributes(ours)
    assert verify_shard(theirs) == []


def test_large_arrays_are_cut_into_chunks(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK_BYTES", 256)
    path = tmp_path / "a.zarr.zip"
    write_shard(path, arrays, {})
    assert same(read_shard(path)[0], arrays)
    with zipfile.ZipFile(path) as archive:
        assert len([n for n in archive.namelist() if n.startswith("positions/c/")]) == 5
    with zarr.storage.ZipStore(path, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        np.testing.assert_array_equal(group["positions"][...], arrays["positions"])


@pytest.mark.parametrize("cuts", [[], [17], [0, 5, 5, 32, 50]])
@pytest.mark.parametrize("chunk_bytes", [256, 2**20])
def test_an_array_in_parts_is_the_same_file_as_the_whole(
    tmp_path, arrays, monkeypatch, cuts, chunk_bytes
):
    monkeypatch.setattr(shards, "CHUNK_BYTES", chunk_bytes)
    write_shard(tmp_path / "whole.zarr.zip", arrays, ATTRIBUTES)
    parts = Blocks(np.split(arrays["positions"], cuts))
    assert (parts.shape, parts.dtype) == ((50, 3), np.float64)
    write_shard(tmp_path / "parts.zarr.zip", {**arrays, "positions": parts}, ATTRIBUTES)
    written = [(tmp_path / f"{name}.zarr.zip").read_bytes() for name in ("whole", "parts")]
    assert written[0] == written[1]


def test_parts_without_rows_are_an_array_without_rows(tmp_path):
    path = tmp_path / "a.zarr.zip"
    write_shard(path, {"none": Blocks([np.zeros((0, 3)), np.zeros((0, 3))])}, {})
    assert read_shard(path)[0]["none"].shape == (0, 3)


def test_parts_are_never_held_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK_BYTES", 2**18)
    part = np.random.default_rng(0).normal(size=(2**12, 3))
    tracemalloc.start()
    try:
        write_shard(tmp_path / "a.zarr.zip", {"values": Blocks([part] * 100)}, {})
        assert tracemalloc.get_traced_memory()[1] < 100 * part.nbytes / 5
    finally:
        tracemalloc.stop()


def test_bytes_depend_on_content_alone(tmp_path, arrays):
    write_shard(tmp_path / "a.zarr.zip", arrays, ATTRIBUTES)
    turned = dict(reversed(arrays.items()))
    turned["positions"] = np.asfortranarray(turned["positions"])
    write_shard(
        tmp_path / "b.zarr.zip",
        turned,
        {"builder": 1.0, "spec": {"neighbors": "knn", "cutoff": 8}},
    )
    script = (
        "import sys, numpy as np\nfrom atomloom.store.shards import read_shard, write_shard\n"
        "arrays, attributes = read_shard(sys.argv[1])\n"
        "write_shard(sys.argv[2], arrays, attributes)"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.zarr.zip"), str(tmp_path / "c.zarr.zip")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123", "TZ": "Asia/Tokyo"},
    )
    content = {(tmp_path / f"{name}.zarr.zip").read_bytes() for name in "abc"}
    assert len(content) == 1


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """Each byte of a small shard in turn: an error that says what to do, or unchanged arrays."""
    path, broken = tmp_path / "a.zarr.zip", tmp_path / "b.zarr.zip"
    arrays = {"a": np.arange(8, dtype=np.int16), "b": np.zeros((2, 3))}
    write_shard(path, arrays, ATTRIBUTES)
    attributes = read_attributes(path)
    content = path.read_bytes()
    messages = []
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        broken.write_bytes(damaged)
        for verify in (True, False):
            try:
                found = read_shard(broken, verify=verify)
            except AtomloomError as error:
                messages.append(str(error))
            else:
                assert same(found[0], arrays)
                assert found[1] == attributes
    assert all(str(broken) in line and "run `atomloom repair`" in line for line in messages)
    # The rest are time stamps and permissions in the zip's headers.
    assert len(messages) > 1.4 * len(content)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_cut_file_is_an_error(tmp_path, arrays, fraction):
    path = tmp_path / "a.zarr.zip"
    write_shard(path, arrays, {})
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(AtomloomError, match=r"a\.zarr\.zip.*run `atomloom repair`"):
        read_shard(path)
    assert len(verify_shard(path)) == 1


def test_foreign_files_are_errors(tmp_path, arrays):
    text = tmp_path / "text.zarr.zip"
    text.write_text("not a zip")
    archive = tmp_path / "zip.zarr.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("hello.txt", "hello")
    plain = tmp_path / "plain.zarr.zip"
    with zarr.storage.ZipStore(plain, mode="w") as store:
        zarr.create_group(store).create_array("src", data=arrays["src"])
    for path in (text, archive, plain, tmp_path / "absent.zarr.zip"):
        with pytest.raises(AtomloomError, match="run `atomloom repair`") as caught:
            read_shard(path)
        assert path.name in str(caught.value)
        assert verify_shard(path) == [caught.value.what]


def edit(path, change) -> None:
    """Rewrite a shard's members by `change(name, data)`, with sound checksums of the zip."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed)


def test_digest_notices_what_checksums_do_not(tmp_path, arrays):
    path, other = tmp_path / "a.zarr.zip", tmp_path / "b.zarr.zip"
    write_shard(path, arrays, {})
    write_shard(other, {**arrays, "src": arrays["src"][::-1]}, {})
    with zipfile.ZipFile(other) as archive:
        foreign = archive.read("src/c/0")
    edit(path, lambda name, data: foreign if name == "src/c/0" else data)
    with pytest.raises(AtomloomError, match="array `src` is damaged: its digest differs"):
        read_shard(path)
    assert read_shard(path, ["shift"])[0]["shift"].shape == (400, 3)
    assert verify_shard(path) == ["array `src` is damaged: its digest differs"]


@pytest.mark.parametrize("verify", [True, False])
def test_lost_chunk_is_no_fill_value(tmp_path, arrays, verify):
    path = tmp_path / "a.zarr.zip"
    write_shard(path, arrays, {})
    edit(path, lambda name, data: None if name == "src/c/0" else data)
    with pytest.raises(AtomloomError, match="array `src` is damaged"):
        read_shard(path, verify=verify)


def test_lost_or_extra_array_is_damage(tmp_path, arrays):
    path = tmp_path / "a.zarr.zip"
    write_shard(path, arrays, {})
    edit(path, lambda name, data: None if name.startswith("src/") else data)
    assert verify_shard(path) == ["arrays and recorded digests disagree: src"]


def test_unknown_codec_is_named(tmp_path, arrays):
    path = tmp_path / "a.zarr.zip"
    write_shard(path, arrays, {})

    def change(name, data):
        if name != "src/zarr.json":
            return data
        info = json.loads(data)
        info["codecs"][-1]["name"] = "sz3"
        return json.dumps(info)

    edit(path, change)
    with pytest.raises(AtomloomError, match="unknown codec sz3"):
        read_shard(path)


def bomb(path, arrays, name: str, **info) -> None:
    """A shard in which one array says other things of itself than it is."""

    def change(member, data):
        return json.dumps(json.loads(data) | info) if member == f"{name}/zarr.json" else data

    write_shard(path, arrays, {})
    edit(path, change)


def grid(*shape: int) -> dict:
    return {"configuration": {"chunk_shape": list(shape)}, "name": "regular"}


GZIP = [{"name": "bytes"}, {"name": "gzip"}]
ZEROS = 80 << 20


@pytest.mark.parametrize(
    "info",
    [
        {"shape": [10**12], "chunk_grid": grid(10**12)},
        {"shape": [10**12]},
        {"chunk_grid": grid(10**12)},
        {"shape": [10**6], "chunk_grid": grid(1)},
        {"shape": [-1]},
    ],
    ids=str,
)
def test_an_array_larger_than_its_file_can_hold_is_damage(tmp_path, arrays, info):
    path = tmp_path / "a.zarr.zip"
    bomb(path, arrays, "src", **info)
    with pytest.raises(AtomloomError, match="array `src` is damaged"):
        read_shard(path)
    assert len(verify_shard(path)) == 1


@pytest.mark.parametrize(
    ("member", "data", "codecs"),
    [
        ("src/c/0", gzip.compress(bytes(ZEROS), 1), GZIP),
        ("src/c/0", numcodecs.zstd.compress(bytes(ZEROS)), [{"name": "bytes"}, {"name": "zstd"}]),
        ("src/c/0", numcodecs.blosc.compress(bytes(ZEROS), b"zstd", 3, 2), None),
        ("src/c/0", bytes(ZEROS), [{"name": "bytes"}]),
        ("src/zarr.json", b" " * ZEROS, None),
        ("zarr.json", b" " * ZEROS, None),
    ],
    ids=["gzip", "zstd", "blosc", "zip", "description", "group"],
)
def test_what_unpacks_without_end_in_a_shard_is_damage(tmp_path, arrays, member, data, codecs):
    path = tmp_path / "a.zarr.zip"
    bomb(path, arrays, "src", **({"codecs": codecs} if codecs else {}))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members | {member: data}).items():
            archive.writestr(name, content)
    del data
    tracemalloc.start()
    try:
        assert len(verify_shard(path)) == 1
        assert tracemalloc.get_traced_memory()[1] < ZEROS / 4, "nothing like it was held"
    finally:
        tracemalloc.stop()


def test_a_fifo_is_no_shard(tmp_path):
    os.mkfifo(tmp_path / "a.zarr.zip")
    with pytest.raises(AtomloomError, match="a FIFO, not a plain file"):
        read_shard(tmp_path / "a.zarr.zip")


def test_objects_text_and_nan_attributes_are_refused(tmp_path):
    path = tmp_path / "a.zarr.zip"
    for array in (np.array(["text"]), np.array([object()]), np.zeros(2, "M8[s]")):
        with pytest.raises(TypeError, match="no portable form"):
            write_shard(path, {"x": array}, {})
    with pytest.raises(TypeError, match="canonical"):
        write_shard(path, {}, {"x": float("nan")})
    assert os.listdir(tmp_path) == []


def test_failed_write_leaves_the_old_shard(tmp_path, arrays, monkeypatch):
    path = tmp_path / "a.zarr.zip"
    write_shard(path, arrays, {})
    before = path.read_bytes()

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(AtomloomError, match=r"a\.zarr\.zip: cannot be written: No space"):
        write_shard(path, {"x": np.arange(3)}, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.zarr.zip"]


def test_writers_of_one_path_do_not_mix(tmp_path, arrays):
    path = tmp_path / "a.zarr.zip"
    variants = [{**arrays, "who": np.full(2000, number)} for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda variant: write_shard(path, variant, {}), variants * 4))
    assert verify_shard(path) == []
    assert len(np.unique(read_shard(path)[0]["who"])) == 1
    assert os.listdir(tmp_path) == ["a.zarr.zip"]
