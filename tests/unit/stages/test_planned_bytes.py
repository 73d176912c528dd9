"""What is stored under a key is what was planned: other bytes are refused, wherever they lie."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout
from atomloom.pipeline.plan import Plan
from atomloom.stages.convert import convert_chunk, read_chunk
from atomloom.stages.plan import make_plan


def quiet(_):
    """Take no notice."""


def frame(length: float) -> str:
    return (
        f'2\nLattice="{length} 0 0 0 {length} 0 0 0 {length}" energy=-1.5 pbc="T T T"\n'
        "Na 0 0 0\nCl 2.5 0 0\n"
    )


FRAMES = "".join(frame(5.0 + 0.1 * number) for number in range(6))


def planned(folder: Path, source: Path) -> tuple[Layout, Plan]:
    layout = Layout(
        parse_config(
            {
                "dataset": {
                    "name": "salt",
                    "source": str(source),
                    "target": "energy",
                    "chunks": {"mean": 3, "min": 2, "max": 3},
                },
                "paths": {"results": str(folder / "results"), "store": str(folder / "store")},
            }
        )
    )
    return layout, make_plan(layout, quiet)


def convert(layout: Layout, plan: Plan) -> list[Path]:
    return [convert_chunk(layout, plan, key, quiet) for key in plan.chunk_keys]


def replace_once(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes, as many, and the old time stamp."""
    stat, content = path.stat(), path.read_bytes()
    assert len(old) == len(new)
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def plain(folder: Path) -> Path:
    path = folder / "frames.extxyz"
    path.write_text(FRAMES)
    return path


def in_tar(folder: Path) -> Path:
    plain(folder)
    path = folder / "frames.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(folder / "frames.extxyz", "frames.extxyz")
    return path


def compressed(folder: Path) -> Path:
    path = folder / "frames.extxyz.gz"
    path.write_bytes(gzip.compress(FRAMES.encode()))
    return path


@pytest.mark.parametrize("source", [plain, in_tar])
def test_a_file_that_is_edited_after_the_plan_is_stored_under_no_key(tmp_path, source):
    path = source(tmp_path)
    layout, plan = planned(tmp_path, path)
    replace_once(path, b"5.3 0 0 0 5.3", b"7.3 0 0 0 5.3")
    with pytest.raises(AtomloomError, match=f"^{path}: record 3 .* the file has changed") as found:
        convert(layout, plan)
    assert "plan again" in str(found.value)
    changed = next(c.key for c in plan.chunks if c.first <= 3 < c.first + c.count)
    again = make_plan(layout, quiet)
    cells = pd.concat(
        [pd.Series(read_chunk(p).table.cell[:, 0, 0]) for p in convert(layout, again)]
    )
    assert (cells == 7.3).sum() == 1
    assert not layout.structures(changed).exists()


def test_a_flipped_bit_in_the_spool_is_found(tmp_path):
    layout, plan = planned(tmp_path, compressed(tmp_path))
    spool = layout.plan_folder / "records.spool"
    replace_once(spool, b"5.3 0 0 0 5.3", b"5.7 0 0 0 5.3")
    with pytest.raises(AtomloomError, match="the spool is damaged; plan again"):
        convert(layout, plan)
    spool.write_bytes(spool.read_bytes()[:-10])
    with pytest.raises(AtomloomError, match="the spool is damaged; plan again"):
        convert_chunk(layout, plan, plan.chunk_keys[-1], quiet)


def test_a_file_that_is_gone_or_shorter_is_one_line(tmp_path):
    path = plain(tmp_path)
    layout, plan = planned(tmp_path, path)
    path.write_text(FRAMES[:-5])
    with pytest.raises(AtomloomError, match="the file has changed"):
        convert(layout, plan)
    path.unlink()
    with pytest.raises(AtomloomError, match=r"cannot be read: No such file.* plan again"):
        convert(layout, plan)


def test_a_table_of_members_that_is_not_the_plans_is_refused(tmp_path):
    """Two records swapped: each is what it says, and the chunk is another one."""
    layout, plan = planned(tmp_path, plain(tmp_path))
    path = layout.plan_folder / "members.parquet"
    frame = pd.read_parquet(path)
    columns = ["id", "number", "offset", "length", "fingerprint"]
    frame.loc[[0, 1], columns] = frame.loc[[1, 0], columns].to_numpy()
    frame.to_parquet(path, index=False)
    with pytest.raises(AtomloomError, match=r"members\.parquet"):
        convert(layout, plan)


def test_another_converter_plans_anew(tmp_path, monkeypatch):
    """Its chunks have other names: a plan of before must not be taken for its own."""
    layout, _ = planned(tmp_path, plain(tmp_path))
    folder = layout.plan_folder
    monkeypatch.setattr("atomloom.pipeline.paths.CONVERTER", -1)
    assert layout.plan_folder != folder


def test_colons_in_names_of_files_are_no_archive(tmp_path):
    path = tmp_path / "a::b.extxyz"
    path.write_text(FRAMES)
    layout, plan = planned(tmp_path, path)
    assert len(convert(layout, plan)) == len(plan.chunk_keys)
