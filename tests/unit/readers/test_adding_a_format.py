"""The example of docs/adding-a-format.md works as it stands."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path

import ase.io
import pytest
from ase.build import molecule

from atomloom.errors import AtomloomError
from atomloom.readers import read, registry
from tests.unit.structures.crystals import assert_same_arrays

DOCUMENT = Path(__file__).parents[3] / "docs" / "adding-a-format.md"


@pytest.fixture
def turbomole(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    path = tmp_path / "turbomole.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("turbomole", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(registry.REGISTRY, module.NAME, module)
    return module


def test_the_documented_reader_reads_what_ase_writes(turbomole, tmp_path):
    water = molecule("H2O")
    stream = io.StringIO()
    ase.io.write(stream, water, format="turbomole")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "water.tmol").write_text(stream.getvalue())
    (folder / "unnamed").write_text(stream.getvalue())
    found = read(folder)
    assert [structure.id for structure in found] == ["unnamed", "water"]
    for structure in found:
        assert_same_arrays(structure, water, 1e-6)
    (folder / "water.tmol").write_text("$coord\n1 2 H\n$end\n")
    with pytest.raises(AtomloomError, match="line 2: not three coordinates and an element"):
        read(folder / "water.tmol", format="turbomole")


def test_every_reader_declares_all_the_names(turbomole):
    for reader in registry.REGISTRY.values():
        assert isinstance(reader, registry.Reader)
        assert all(
            about and isinstance(about, str) for about in (reader.ABOUT, *reader.OPTIONS.values())
        )
        assert all(pattern == pattern.lower() for pattern in (*reader.PATTERNS, *reader.HINTS))


def test_every_option_is_used():
    """No hollow options: each is looked up somewhere in the package."""
    folder = Path(registry.__file__).parents[1]
    code = "".join(path.read_text() for path in folder.rglob("*.py"))
    names = {name for reader in registry.REGISTRY.values() for name in reader.OPTIONS}
    for name in names | set(registry.COMMON_OPTIONS):
        assert re.search(rf'options(\.get\(|\[)"{name}"', code), name


def test_the_guide_names_every_format_and_option():
    text = (DOCUMENT.parent / "reading-data.md").read_text()
    for name, reader in registry.REGISTRY.items():
        assert f"`{name}`" in text
        for option in reader.OPTIONS:
            assert f"`{option}`" in text
    for option in registry.COMMON_OPTIONS:
        assert f"`{option}`" in text


def test_the_guide_s_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(DOCUMENT.parents[1])
    (code,) = re.findall(
        r"```python\n(.*?)```", (DOCUMENT.parent / "reading-data.md").read_text(), re.DOTALL
    )
    exec(compile(code, "reading-data.md", "exec"), {})
    assert int(capsys.readouterr().out.split()[0]) > 0
