"""Files, folders, archives and compression: what a source comprises, and how it becomes records."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp import Poscar

from atomloom.errors import AtomloomError
from atomloom.readers import enumerate_records, list_files, parse_record, read, sources
from atomloom.readers.registry import format_of
from atomloom.readers.sources import natural_key, read_table, record_id
from atomloom.structures import Structure
from tests.unit.structures.crystals import symmetric_crystals

RUTILE = symmetric_crystals()["rutile"]
POSCAR = Poscar(RUTILE).get_str()
XYZ = "2\n\nC 0 0 0\nO 0 0 1.2\n"
PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, "": lambda data: data}


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def zip_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def records(path, format="auto", pattern=None, **options):
    return list(enumerate_records(list_files(path, pattern, format), format, options, pattern))


def outcome(record):
    try:
        return len(parse_record(record.format, record.payload, record.id))
    except AtomloomError as error:
        return str(error)


def test_files_of_a_folder_come_in_natural_order(tmp_path):
    for name in ("10.vasp", "2.vasp", "1.vasp", "b/3.vasp", "a/12.vasp", "a/4.vasp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(POSCAR)
    names = [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)]
    assert names == ["1.vasp", "2.vasp", "10.vasp", "a/4.vasp", "a/12.vasp", "b/3.vasp"]


@settings(max_examples=100)
@given(st.lists(st.text(st.sampled_from("a1.2-/²٣x"), max_size=8)))
def test_any_names_can_be_put_in_natural_order(names):
    assert sorted(sorted(names, key=natural_key), key=natural_key) == sorted(names, key=natural_key)


def test_hidden_files_tables_and_documents_are_left_out(tmp_path):
    for name in ("1.vasp", ".hidden.vasp", ".git/2.vasp", "__MACOSX/1.vasp", "._1.vasp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(POSCAR)
    (tmp_path / "id_prop.csv").write_text("1.vasp,0.5\n")
    (tmp_path / "README.md").write_text("# about\n")
    (tmp_path / "config.json").write_text('{"epochs": 3}')
    (tmp_path / "unnamed").write_text(POSCAR)  # recognised by what is in it
    assert [path.name for path in list_files(tmp_path)] == ["1.vasp", "unnamed"]


def test_a_pattern_selects_and_a_format_takes_all_but_documents(tmp_path):
    for name in ("1.vasp", "2.dat", "3.dat", "notes.md"):
        (tmp_path / name).write_text("rubbish")
    assert [p.name for p in list_files(tmp_path, "*.dat")] == ["2.dat", "3.dat"]
    assert [p.name for p in list_files(tmp_path, format="poscar")] == ["1.vasp", "2.dat", "3.dat"]
    assert [outcome(r) for r in records(tmp_path, pattern="2.*")] == [
        "in no format that a reader recognises"
    ]


def test_a_missing_source_and_an_unknown_format_are_errors(tmp_path):
    with pytest.raises(
        AtomloomError, match=r"nowhere.*cannot be read: No such file.*dataset\.source"
    ):
        list_files(tmp_path / "nowhere")
    with pytest.raises(
        AtomloomError, match=r"^dataset\.format: unknown format `xml`; known are: cif"
    ):
        list_files(tmp_path, None, "xml")
    with pytest.raises(AtomloomError, match=r"^dataset\.format: unknown format"):
        list(enumerate_records([], "xml"))


def test_a_mistyped_option_is_an_error():
    with pytest.raises(AtomloomError, match="unknown option `bx`; did you mean `box`"):
        list(enumerate_records([], "auto", {"bx": "molecule"}))
    with pytest.raises(AtomloomError, match="box should be `keep` or `molecule`"):
        list(enumerate_records([], "auto", {"box": "yes"}))


@pytest.mark.parametrize("ending", PACKERS)
def test_a_single_file_is_read_packed_or_not(tmp_path, ending):
    path = tmp_path / f"frames.xyz{ending}"
    path.write_bytes(PACKERS[ending]((XYZ * 3).encode()))
    found = records(path)
    assert [r.id for r in found] == ["frames-000000", "frames-000001", "frames-000002"]
    assert [r.number for r in found] == [0, 1, 2]
    for record in found:
        assert record.length == len(record.payload)
        assert (record.offset >= 0) == (ending == "")
        if not ending:
            assert path.read_bytes()[record.offset :][: record.length] == record.payload
    assert [s.id for s in read(path)] == [r.id for r in found]


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".tgz", ".zip"])
def test_an_archive_holds_the_records_of_its_members(tmp_path, ending):
    members = {
        "set/10.vasp": POSCAR.encode(),
        "set/2.vasp": POSCAR.encode(),
        "set/frames.xyz": (XYZ * 2).encode(),
        "set/packed.xyz.gz": gzip.compress(XYZ.encode()),
        "set/id_prop.csv": b"10.vasp,0.5\n",
        "set/README.md": b"# about\n",
        "__MACOSX/set/._2.vasp": b"x",
        "set/mp-1/POSCAR": POSCAR.encode(),
    }
    path = tmp_path / f"set{ending}"
    if ending == ".zip":
        zip_of(path, members)
    else:
        tar_of(path, members, {"tgz": "w:gz"}.get(ending[1:], f"w:{ending[5:]}"))
    found = records(path)
    assert [r.id for r in found] == ["10", "2", "frames-000000", "frames-000001", "packed", "mp-1"]
    assert [r.number for r in found] == list(range(6))
    assert found[0].member == "set/10.vasp"
    assert [outcome(r) for r in found] == [6, 6, 2, 2, 2, 6]
    raw = path.read_bytes()
    for record in found:
        # a plain tar holds the bytes as they are: no copy is needed
        assert (record.offset >= 0) == (ending == ".tar" and record.id != "packed")
        if record.offset >= 0:
            assert raw[record.offset : record.offset + record.length] == record.payload
    assert read_table(f"{path}::set/id_prop.csv") == b"10.vasp,0.5\n"
    assert [r.id for r in records(path, pattern="*.vasp")] == ["10", "2"]
    with pytest.raises(AtomloomError, match="no member `nothing`"):
        read_table(f"{path}::nothing")


def test_an_archive_is_known_by_its_bytes_not_its_name(tmp_path):
    path = tar_of(tmp_path / "download", {"1.vasp": POSCAR.encode()}, "w:gz")
    assert [r.id for r in records(path)] == ["1"]


@pytest.mark.parametrize(
    "name", ["../1.vasp", "a/../../1.vasp", "/etc/1.vasp", "..\\1.vasp", "C:\\1.vasp"]
)
def test_members_that_would_leave_their_folder_are_refused(tmp_path, name):
    for path in (
        tar_of(tmp_path / "a.tar", {name: b"x"}),
        zip_of(tmp_path / "a.zip", {name: b"x"}),
    ):
        with pytest.raises(
            AtomloomError, match=rf"{path.name}: member `.*` would leave its folder: refused"
        ):
            records(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_in_an_archive_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("1.vasp")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(
        AtomloomError, match=r"a\.tar: member `1\.vasp` is (a link|not a plain file): refused"
    ):
        records(tmp_path / "a.tar")


def test_links_in_a_zip_are_refused(tmp_path):
    entry = zipfile.ZipInfo("1.vasp")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(AtomloomError, match="is a link: refused"):
        records(tmp_path / "a.zip")


def test_what_unpacks_absurdly_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LEAST_BOMB", 1 << 20)
    zeros = b" " * (4 << 20)
    zip_of(tmp_path / "bomb.zip", {"1.vasp": zeros})
    with pytest.raises(
        AtomloomError, match=r"bomb\.zip: member `1\.vasp` unpacks to more than 1000 times"
    ):
        records(tmp_path / "bomb.zip")
    (tmp_path / "bomb.vasp.xz").write_bytes(lzma.compress(zeros))
    with pytest.raises(
        AtomloomError, match=r"bomb\.vasp\.xz: unpacks to more than 1000 times its size"
    ):
        records(tmp_path / "bomb.vasp.xz")
    tar_of(tmp_path / "bomb.tar.xz", {"1.vasp": zeros}, "w:xz")
    with pytest.raises(
        AtomloomError, match=r"bomb\.tar\.xz: unpacks to more than 1000 times its size"
    ):
        records(tmp_path / "bomb.tar.xz")


def test_the_total_is_bounded_by_an_option(tmp_path):
    noise = os.urandom(300_000)
    for path in (
        zip_of(tmp_path / "a.zip", {"1.vasp": noise, "2.vasp": noise}),
        tar_of(tmp_path / "a.tar.gz", {"1.vasp": noise, "2.vasp": noise}, "w:gz"),
    ):
        with pytest.raises(
            AtomloomError, match=r"unpacks to more than 0\.0005 GB.*max_unpacked_gb"
        ):
            records(path, max_unpacked_gb=0.0005)
        assert len(records(path)) == 2


def test_a_damaged_archive_stops_the_run_since_nobody_knows_what_is_lost(tmp_path):
    tar_of(tmp_path / "a.tar.gz", {f"{n}.vasp": os.urandom(5000) for n in range(50)}, "w:gz")
    whole = (tmp_path / "a.tar.gz").read_bytes()
    for cut in (10, 5000, len(whole) - 100):
        (tmp_path / "a.tar.gz").write_bytes(whole[:cut])
        with pytest.raises(AtomloomError, match="damaged"):
            records(tmp_path / "a.tar.gz")
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(AtomloomError, match=r"b\.zip: damaged"):
        records(tmp_path / "b.zip")
    (tmp_path / "c.tar.gz").write_bytes(b"")
    with pytest.raises(AtomloomError, match=r"c\.tar\.gz: damaged, or not an archive"):
        records(tmp_path / "c.tar.gz")


def test_an_archive_without_structures_is_an_error(tmp_path):
    zip_of(tmp_path / "a.zip", {"notes.txt": b"hello", "t.csv": b"1,2"})
    with pytest.raises(
        AtomloomError, match=r"no member that a reader recognises \(first: notes\.txt, t\.csv\)"
    ):
        records(tmp_path / "a.zip")


@pytest.mark.parametrize("ending", [".gz", ".xz", ".bz2"])
def test_a_packed_file_cut_short_is_never_passed_over(tmp_path, ending):
    frames = "".join(f"2\n\nC 0 0 {n}\nO 0 0 {n}.{n * 7919 % 1000}\n" for n in range(40_000))
    whole = PACKERS[ending](frames.encode())
    path = tmp_path / f"frames.xyz{ending}"
    path.write_bytes(whole[: len(whole) * 9 // 10])
    # what had been unpacked before it broke off is lost: the run stops
    with pytest.raises(AtomloomError, match=r"breaks off after \d+ records: damaged"):
        records(path)
    path.write_bytes(whole[:20])
    (only,) = records(path)
    assert "damaged" in outcome(only)
    path.write_bytes(b"not packed at all")
    (only,) = records(path)
    assert "is not compressed that way" in outcome(only)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.cif", b""), ("a.xyz", b""), ("a.xyz", b"\n\n"), ("a.json", b""), ("POSCAR", b""), ("a.csv", b""),
     ("a.xsf", b""), ("vasprun.xml", b""), ("input.data", b""), ("a.db", b""), ("what", b""),
     ("what", b"\x00\xff" * 500), ("a.cif", b"\x00\xff" * 500), ("a.xyz", b"\x00\xff\n" * 500)],
)  # fmt: skip
def test_an_empty_or_senseless_file_is_a_record_that_fails(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    if name == "a.csv":  # a table without the column: the config can mend it
        with pytest.raises(AtomloomError, match="structure_column"):
            records(tmp_path / name)
        return
    found = records(tmp_path / name)
    assert len(found) == 1
    assert isinstance(outcome(found[0]), str)


JSON = json.dumps({"a": POSCAR, "b": POSCAR})
CSV = 'id,structure\n1,"' + POSCAR + '"\n'
CONTENTS = {
    "cif": str(CifWriter(RUTILE)),
    "poscar": POSCAR,
    "extxyz": XYZ,
    "xsf": "# made by hand\n\nMOLECULE\nATOMS\nO 0 0 0\n",
    "vasprun": "<modeling>\n</modeling>\n",
    "json": JSON,
    "csv": CSV,
    "runner": "begin\natom 0 0 0 O 0 0 0 0 0\nend\n",
}


@pytest.mark.parametrize("format", CONTENTS)
def test_a_name_never_beats_the_content(format):
    for name in ("poscars.json", "CONTCAR", "table_poscar", "a.cif", "a.xyz", "a.xsf", "vasprun.xml", "a.csv",
                 "input.data", "a.jsonl", "a.txt", "a"):  # fmt: skip
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            assert format_of(name, CONTENTS[format].encode(encoding)) == format, name


def test_a_document_of_poscars_is_known_whether_it_was_escaped_once_or_twice():
    for text in (JSON, json.dumps({"train": {"a": POSCAR.replace("\n", "\\n")}})):
        assert format_of("a", text.encode()) == "json"


def test_a_name_tells_where_the_content_does_not():
    by_columns = b"1\nProperties=pos:R:3:species:S:1\n-0.5 0 0 Cu\n"
    assert format_of("a.cif", by_columns) == format_of("a", by_columns) == "extxyz"
    assert format_of("POSCAR", b"rubbish") == format_of("poscar_3", b"") == "poscar"
    assert format_of("a.cif", b"_cell_length_a 3\n") == "cif"
    assert format_of("poscars.json", b"{}") == "json"
    for name in ("poscars.json", "contcar_labels.csv", "a.json"):  # of a folder
        assert format_of(name, b"a,b\n1,2\n", hints=False) is None


def test_a_document_named_as_a_poscar_is_read_whole(tmp_path):
    for name, content, ids in (
        ("poscars.json", JSON, ["a", "b"]),
        ("CONTCAR", CSV, ["1"]),
        ("two.xyz", POSCAR * 2, ["two-000000", "two-000001"]),
    ):
        (tmp_path / name).write_text(content)
        assert [s.id for s in read(tmp_path / name)] == ids
        assert [len(s) for s in read(tmp_path / name)] == [6] * len(ids)
    with pytest.raises(AtomloomError, match="ends after 1 lines"):
        read(tmp_path / "poscars.json", format="poscar")


@pytest.mark.parametrize(
    ("line_end", "encoding"), [("\n", "utf-8-sig"), ("\r\n", "utf-8-sig"), ("\r", "utf-8")]
)
@pytest.mark.parametrize("format", ["cif", "poscar", "extxyz", "xsf", "json", "csv", "runner"])
def test_byte_order_marks_and_line_ends_of_any_editor_are_read(
    tmp_path, format, line_end, encoding
):
    text = CONTENTS[format]
    plain, path = tmp_path / "plain", tmp_path / "file"
    plain.write_text(text)
    path.write_bytes(text.replace("\n", line_end).encode(encoding))
    for found in (
        records(path),
        records(tar_of(tmp_path / "a.tar", {"x/file": path.read_bytes()})),
    ):
        assert [outcome(r) for r in found] == [outcome(r) for r in records(plain)]
        assert all(isinstance(outcome(r), int) for r in found)
        for record in found:
            raw = (tmp_path / "a.tar").read_bytes() if record.member else path.read_bytes()
            if record.offset >= 0:
                assert raw[record.offset :][: record.length] == record.payload
    payload = path.read_bytes()
    if format in ("cif", "poscar", "extxyz", "xsf", "runner"):
        assert isinstance(parse_record(format, payload), Structure)


def test_texts_in_a_document_have_the_line_ends_and_marks_of_any_editor(tmp_path):
    texts = {
        "a": POSCAR,
        "b": "\ufeff" + POSCAR,
        "c": POSCAR.replace("\n", "\r\n"),
        "d": POSCAR.replace("\n", "\r"),
    }
    (tmp_path / "all.json").write_text(json.dumps(texts))
    assert [(s.id, len(s)) for s in read(tmp_path / "all.json")] == [(name, 6) for name in texts]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["POSCAR", "a.xyz", "a.json", "a.xml"])
def test_text_in_utf_16_is_refused_with_a_line_that_says_so(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_bytes((XYZ if "xyz" in name else POSCAR).encode(encoding))
    (only,) = records(path)
    assert outcome(only) == "text in UTF-16 or UTF-32: save it as UTF-8"
    with pytest.raises(AtomloomError, match="UTF-16"):
        parse_record("poscar", path.read_bytes())


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_large_member_whose_name_tells_nothing_is_known_by_its_content(tmp_path, ending, packed):
    many = json.dumps({str(n): POSCAR for n in range(200)}).encode()
    assert len(many) > sources.HEAD
    members = {
        f"set/{name}{packed}": PACKERS[packed](many) for name in ("all.json", "all", "README")
    } | {"x.vasp": POSCAR.encode(), "noise": os.urandom(100_000)}
    path = tmp_path / f"a{ending}"
    if ending == ".zip":
        zip_of(path, members)
    else:
        tar_of(path, members, f"w:{ending[5:]}")
    assert len(records(path)) == 601
    assert len(records(path, pattern="all*")) == 400


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("1.cif", "1"), ("a/b/1.cif.gz", "1"), ("POSCAR-JVASP-76562.vasp", "POSCAR-JVASP-76562"),
        ("mp-1.5", "mp-1.5"), ("x.y.extxyz.xz", "x.y"), ("run/POSCAR", "run"), ("run/vasprun.xml.gz", "run"),
        ("POSCAR", "POSCAR"), ("run/CONTCAR", "run"), ("sys/type.raw", "sys"), ("a/.cif", ".cif"),
        ("dft.json.zip", "dft.json.zip"), ("frames.XYZ", "frames"), ("run/XDATCAR", "run"),
    ],
)  # fmt: skip
def test_ids_are_names_without_endings(name, id):
    assert record_id(name) == id


def test_records_of_files_of_one_name_are_told_apart_when_read(tmp_path):
    for folder in "xy":
        (tmp_path / folder / "run").mkdir(parents=True)
        (tmp_path / folder / "same.vasp").write_text(POSCAR)
        (tmp_path / folder / "run" / "POSCAR").write_text(POSCAR)
    assert [s.id for s in read(tmp_path)] == ["x/run", "x/same", "y/run", "y/same"]
    assert [s.id for s in read(tmp_path / "x")] == ["run", "same"]


def test_archives_in_a_folder_are_files_of_it(tmp_path):
    tar_of(tmp_path / "a.tar.gz", {"1.vasp": POSCAR.encode()}, "w:gz")
    (tmp_path / "2.vasp").write_text(POSCAR)
    assert [r.id for r in records(tmp_path)] == ["2", "1"]
    assert [r.file for r in records(tmp_path)] == [0, 1]


def test_records_stream_from_an_archive(tmp_path):
    """The first record is there before the last byte of the archive has been read."""
    path = tar_of(
        tmp_path / "a.tar.gz", {f"{n}.vasp": os.urandom(100_000) for n in range(100)}, "w:gz"
    )
    packed = path.read_bytes()
    path.write_bytes(packed[: len(packed) // 2])
    stream = enumerate_records([path])
    assert next(stream).id == "0"
    with pytest.raises(AtomloomError):
        list(stream)


def test_names_that_are_no_text_are_written_out_or_refused(tmp_path):
    """Bytes that are no UTF-8, in an archive (another system's letters) and on disk."""
    path = zip_of(tmp_path / "a.zip", {"whole.xyz": XYZ.encode()})
    archive = tar_of(tmp_path / "a.tar", {"caf\udce9.xyz": XYZ.encode()})
    (found,) = records(archive)
    assert (found.id, found.member) == (r"caf\udce9", r"caf\udce9.xyz")
    assert sources.source_name(archive, found.member).endswith(r"a.tar::caf\udce9.xyz")
    assert sources.source_name(path, "x") == f"{path}::x"
    with pytest.raises(AtomloomError, match=r"caf\\udce9\.xyz: .*not UTF-8; rename it"):
        sources.source_name(tmp_path / "caf\udce9.xyz")
    (tmp_path / "a.json").write_text(
        json.dumps([{"id": "\ud800", "kind": "\ud800", "atoms": {"elements": ["Na"]}}])
    )
    (found,) = records(tmp_path / "a.json")
    assert found.id == r"\ud800"
    assert r"\ud800" in found.labels.values()
