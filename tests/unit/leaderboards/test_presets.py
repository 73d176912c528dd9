"""Presets named after papers plan, train and report; here on a few made-up structures of the same form."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from atomloom.api import prepare, run_pipeline
from atomloom.commands.jarvis import write_split
from atomloom.commands.reproduce import Request, reproduce_run
from atomloom.config import load_config, parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout
from atomloom.stages.sources import refresh_sources

PRESETS = Path(__file__).resolve().parents[3] / "config" / "presets"
PAPERS = (
    "aenet-tio2",
    "alignn-jarvis",
    "ecomformer-mp",
    "icomformer-jarvis",
    "matbench-phonons",
    "painn-rmd17",
)
REPEATED = ("matbench-phonons", "painn-rmd17")
"""A preset of crystals and one of a potential, which are trained twice."""
SMALL = {
    "alignn": {"width": 8, "alignn_layers": 1, "gcn_layers": 1, "embedding": 4, "edge_bins": 4, "angle_bins": 4},
    "chebyshev": {},
    "ecomformer": {"width": 8, "layers": 2},
    "icomformer": {"width": 8, "layers": 2},
    "painn": {"width": 8, "layers": 1},
}  # fmt: skip


def cell(rng):
    """A cubic cell of two atoms, as (edge, fractional coordinates)."""
    return 4.0 + rng.uniform(0, 1), [[0, 0, 0], [0.5, 0.5, rng.uniform(0.45, 0.55)]]


def jarvis_entry(rng, tag, name):
    edge, coords = cell(rng)
    lattice = (edge * np.eye(3)).tolist()
    atoms = {"lattice_mat": lattice, "coords": coords, "elements": ["Ti", "O"], "cartesian": False}
    return {tag: name, "atoms": atoms}


def write_jarvis(data, store, config):
    """A download as figshare has it, and the label table that `leaderboard split` makes."""
    rng = np.random.default_rng(0)
    tag, names = ("id", "mp-{}") if "megnet" in config.dataset.source[0] else ("jid", "JVASP-{}")
    names = [names.format(number) for number in range(20)]
    entries = [jarvis_entry(rng, tag, name) for name in names]
    path = store / "downloads" / "jarvis" / f"{config.dataset.source[0].partition(':')[2]}.json.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("d.json", json.dumps(entries))
    parts = {"train": names[:12], "val": names[12:16], "test": names[16:]}
    benchmark = data / "b.json.zip"
    with zipfile.ZipFile(benchmark, "w") as archive:
        values = {split: {name: rng.normal() for name in own} for split, own in parts.items()}
        archive.writestr("b.json", json.dumps(values))
    table = Path(str(config.dataset.label_tables[0].file).replace("${ATOMLOOM_DATA}", str(data)))
    write_split(benchmark, config.dataset.target[0], table)


def write_phonons(data, store, config):
    rng, folder = np.random.default_rng(0), data / "matbench_phonons"
    folder.mkdir()
    rows = []
    for _ in range(20):
        edge, coords = cell(rng)
        sites = [
            {"species": [{"element": element, "occu": 1}], "abc": place}
            for element, place in zip(("Ti", "O"), coords, strict=True)
        ]
        structure = {"@module": "pymatgen.core.structure", "@class": "Structure", "sites": sites,
                     "lattice": {"matrix": (edge * np.eye(3)).tolist()}}  # fmt: skip
        rows.append([structure, rng.uniform(100, 900)])
    content = {"index": list(range(20)), "columns": ["structure", "last phdos peak"], "data": rows}
    (folder / "matbench_phonons.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    folds = {f"fold_{fold}": list(range(fold, 20, 5)) for fold in range(5)}
    (folder / "folds.json").write_text(json.dumps(folds))


def write_rmd17(data, store, config):
    rng, folder = np.random.default_rng(0), data / "rmd17"
    folder.mkdir()
    places = np.array([[0, 0, 0], [1.5, 0, 0], [2.1, 1.2, 0], [-0.5, 0.9, 0.3]])
    for part, count in (("train", 24), ("test", 6)):
        lines = []
        for _ in range(count):
            moved = places + rng.normal(0, 0.05, places.shape)
            lines += [
                "4",
                'Lattice="50 0 0 0 50 0 0 0 50" Properties=species:S:1:pos:R:3:forces:R:3 '
                f'Energy={-4200 + rng.normal(0, 0.1)} pbc="F F F"',
            ]
            for element, position in zip("CCOH", moved, strict=True):
                numbers = [*position, *rng.normal(0, 1, 3)]
                lines.append(" ".join([element, *(f"{value:.6f}" for value in numbers)]))
        text = "\n".join(lines) + "\n"
        (folder / f"ethanol_{part}_01.xyz.xz").write_bytes(lzma.compress(text.encode()))


def write_tio2(data, store, config):
    rng, folder = np.random.default_rng(0), data / "aenet_tio2"
    folder.mkdir()
    names = [*config.split.test_sources, *(f"train{number}.xsf" for number in range(24))]
    with tarfile.open(folder / "dir_xsf.tar.gz", "w:gz") as archive:
        for name in names:
            edge, coords = cell(rng)
            lines = [f"# total energy = {-2045 + rng.normal()} eV", "CRYSTAL", "PRIMVEC"]
            lines += [" ".join(map(str, row)) for row in edge * np.eye(3)]
            lines += ["PRIMCOORD", "2 1"]
            for element, place in zip(("Ti", "O"), coords, strict=True):
                numbers = [*(edge * np.array(place)), *rng.normal(0, 1, 3)]
                lines.append(" ".join([element, *map(str, numbers)]))
            content = ("\n".join(lines) + "\n").encode()
            about = tarfile.TarInfo(f"dir_xsf/{name}")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))


WRITERS = {
    "aenet-tio2": write_tio2,
    "matbench-phonons": write_phonons,
    "painn-rmd17": write_rmd17,
}


@pytest.fixture(params=PAPERS)
def preset(request, tmp_path, monkeypatch):
    """Path of a preset, and an empty folder for its data."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("ATOMLOOM_DATA", str(data))
    return PRESETS / f"{request.param}.yaml", data


def test_a_preset_trains_and_shows_its_error_beside_the_published(preset, tmp_path):
    path, data = preset
    content = yaml.safe_load(path.read_text())
    name = content["model"]["name"]
    content["model"] |= SMALL[name]
    content["training"] |= {"epochs": 2, "threads": 1}
    content["paths"] = {"results": str(tmp_path / "results"), "store": str(tmp_path / "store")}
    config = parse_config(content)
    WRITERS.get(path.stem, write_jarvis)(data, tmp_path / "store", config)
    said: list[str] = []
    run = run_pipeline(config, said.append)
    told = [line for line in said if config.published.source in line]
    assert len(told) == len(config.published.errors)
    for line, error in zip(told, config.published.errors, strict=True):
        # Made up are few structures, but as many test files as are named.
        as_many = error.count == len(config.split.test_sources)
        assert ("not reached" if as_many else "not measured (over ") in line
    page = run.report.read_text()
    assert page.count(config.published.source) >= len(told)
    assert "Against the published" in page
    if path.stem in REPEATED:
        request = Request(str(run.folder), tmp_path / "again")
        assert reproduce_run(request, prepare, said.append).outcome == "bit-equal"


def test_presets_say_seed_threads_source_gap_and_data(preset):
    path, _ = preset
    training = yaml.safe_load(path.read_text())["training"]
    assert {"seed", "threads"} <= set(training)  # a run is repeated to the bit with equal threads
    published = load_config(path).published
    assert published.source
    assert published.data
    assert all(error.gap <= 0.2 and error.count for error in published.errors)


def test_missing_data_are_told_in_one_line_with_their_origin(preset, monkeypatch):
    path, data = preset
    config = load_config(path)
    origin = " ".join(config.published.data.split())
    content = config.model_dump() | {
        "paths": {"results": str(data / "r"), "store": str(data / "s")}
    }
    if config.dataset.source[0].startswith("jarvis:"):
        missing = config.dataset.label_tables[0].file
    else:
        missing = config.dataset.source[0]
    with pytest.raises(AtomloomError) as error:
        refresh_sources(Layout(parse_config(content)))
    assert origin in str(error.value)
    assert missing.replace("${ATOMLOOM_DATA}", str(data)) in str(error.value)
    assert "\n" not in str(error.value)
    monkeypatch.delenv("ATOMLOOM_DATA")
    with pytest.raises(AtomloomError, match="ATOMLOOM_DATA is not set") as error:
        load_config(path)
    assert origin in str(error.value)
