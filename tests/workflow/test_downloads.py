"""Sources that are downloaded: once, whole or not at all, and never while the workflow is parsed."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pandas as pd
import pytest

from atomloom.config import load_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout
from atomloom.stages.plan import make_plan
from tests.workflow.project import CONFIG, Project
from tests.workflow.test_bad_input import stage

MEMBER = "tiny_3d.json"
KEY = "k" * 32


def jarvis_entry(number: int) -> dict:
    atoms = {
        "lattice_mat": [[4.0 + 0.1 * number, 0, 0], [0, 4.0, 0], [0, 0, 4.0]],
        "coords": [[0, 0, 0], [0.5, 0.5, 0.5]],
        "elements": ["Cs", "Cl"],
        "abc": [4.0, 4.0, 4.0],
        "angles": [90, 90, 90],
        "cartesian": False,
        "props": ["", ""],
    }
    return {"jid": f"JVASP-{number}", "atoms": atoms, "energy": -1.5 * number, "gap": "na"}


def zipped(entries: list[dict]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER, (1980, 1, 1, 0, 0, 0)), json.dumps(entries))
    return buffer.getvalue()


class Server:
    """Answers every request by `answer(path)`, a status and a body, and remembers the paths."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = lambda path: (200, zipped([jarvis_entry(n) for n in range(12)]))
        self.short = 0
        """Bytes that are promised and never sent."""
        self.url = ""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with serving() as server:
        info = {"tiny_3d": [f"{server.url}/files/1", MEMBER, "Obtaining", "https://doi.org/none"]}
        monkeypatch.setattr("jarvis.db.figshare.get_db_info", lambda: info)
        yield server


@contextmanager
def serving():
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            status, body = server.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + server.short))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    http = HTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    project = Project.create(tmp_path / "project", structures=2)
    write_source(project, "jarvis:tiny_3d")
    monkeypatch.chdir(project.folder)
    return project


def write_source(project: Project, source: str) -> None:
    dataset = {name: value for name, value in CONFIG["dataset"].items() if name != "labels"}
    project.write_config({**CONFIG, "dataset": {**dataset, "source": source}})


def plan(project: Project):
    return make_plan(Layout(load_config("my.yaml")), lambda message: None)


def test_a_jarvis_data_set_is_fetched_once_and_kept(project, server):
    assert plan(project).records == 12
    assert server.asked == ["/files/1"]
    kept = project.folder / "store/downloads/jarvis/tiny_3d.json.zip"
    assert kept.read_bytes() == server.answer("")[1]
    origin = json.loads(kept.with_name(kept.name + ".origin.json").read_text())
    assert origin["source"] == "jarvis:tiny_3d"
    assert origin["url"].endswith("/files/1")
    (members,) = (project.folder / "results/tiny/plan").glob("*/members.parquet")
    assert pd.read_parquet(members)["id"].tolist() == [f"JVASP-{n}" for n in range(12)]
    labels = pd.read_parquet(members.with_name("labels.parquet"))
    assert labels["energy"].tolist() == [-1.5 * n for n in range(12)]

    plan(project)
    assert server.asked == ["/files/1"], "the second run asks nobody"


def test_once_it_is_there_the_workflow_needs_no_net_and_not_even_the_file(project, server):
    plan(project)
    server.answer = lambda path: (500, b"")
    assert "plan" not in project.jobs()
    (project.folder / "store/downloads/jarvis/tiny_3d.json.zip").unlink()
    assert "plan" not in project.jobs(), "its records are in the spool"
    for name in ("convert", "graphs", "index", "split"):
        done = stage(project, name)
        assert done.returncode == 0, done.stderr


def test_parsing_the_workflow_downloads_nothing(project):
    """The name does not exist: had anybody asked, this would have failed."""
    assert "plan" in project.snakemake("-n")
    assert not (project.folder / "store").exists()


def test_without_a_net_it_says_so_in_one_line(project, server, monkeypatch):
    server.answer = lambda path: (503, b"busy")
    with pytest.raises(AtomloomError, match=r"jarvis:tiny_3d: cannot be downloaded: .* 503 .*net"):
        plan(project)
    info = {"tiny_3d": ["http://127.0.0.1:1/files/1", MEMBER, "", ""]}
    monkeypatch.setattr("jarvis.db.figshare.get_db_info", lambda: info)
    with pytest.raises(AtomloomError, match=r"no connection to http://127.0.0.1:1/.*net") as error:
        plan(project)
    assert "\n" not in str(error.value)


def test_what_breaks_off_or_is_no_zip_leaves_nothing_behind(project, server):
    whole = server.answer("")[1]
    for body, short in ((whole[:200], len(whole) - 200), (whole[:200], 0), (b"<html>", 0)):
        server.answer, server.short = (lambda path, body=body: (200, body)), short
        with pytest.raises(AtomloomError, match="cannot be downloaded"):
            plan(project)
        assert not [p for p in (project.folder / "store").rglob("*") if p.is_file()]


def test_a_wrong_name_is_told_the_nearest(project, server):
    write_source(project, "jarvis:tiny3d")
    with pytest.raises(AtomloomError, match="did you mean tiny_3d"):
        plan(project)


def test_a_file_put_there_by_hand_is_taken(project):
    kept = project.folder / "store/downloads/jarvis/tiny_3d.json.zip"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(zipped([jarvis_entry(n) for n in range(5)]))
    done = stage(project, "plan")
    assert done.returncode == 0, done.stderr
    assert "5 records" in done.stderr
    assert "plan" not in project.jobs()


def test_verify_names_a_download_that_changed_and_repair_removes_it(project, server):
    plan(project)
    kept = project.folder / "store/downloads/jarvis/tiny_3d.json.zip"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + b"x")
    from atomloom.commands.maintenance import repair_store, verify_store

    store = project.folder / "store"
    assert [item.path for item in verify_store(store)] == [kept]
    assert repair_store(store, 1, lambda message: None) == 1
    plan(project)
    assert kept.read_bytes() == whole


# --- Materials Project ---


def summary(number: int) -> dict:
    lattice = {"matrix": [[4, 0, 0], [0, 4, 0], [0, 0, 4]]}
    site = {"species": [{"element": "Po", "occu": 1}], "abc": [0, 0, 0]}
    structure = {"@module": "pymatgen.core.structure", "@class": "Structure", "lattice": lattice}
    structure |= {"charge": 0, "sites": [{**site, "abc": [0.01 * number, 0, 0]}]}
    return {"material_id": f"mp-{number}", "structure": structure, "energy": 0.5 * number}


@pytest.fixture
def materials(server, monkeypatch):
    from pymatgen.core import SETTINGS

    monkeypatch.setitem(SETTINGS, "PMG_MAPI_ENDPOINT", f"{server.url}/")
    monkeypatch.setenv("MP_API_KEY", KEY)

    def answer(path: str):
        entries = [summary(n) for n in (7, 3)]
        return 200, json.dumps({"data": entries}).encode()

    server.answer = answer
    return server


@pytest.mark.parametrize("query", ["mp-3,mp-7", "chemsys=Po&is_stable=true"])
def test_materials_project_ids_and_filters(project, materials, query):
    write_source(project, f"mp:{query}")
    assert plan(project).records == 2
    (asked,) = materials.asked
    assert asked.startswith("/materials/summary/?")
    assert all(part in asked for part in query.replace(",", "%2C").split("&"))
    (members,) = (project.folder / "results/tiny/plan").glob("*/members.parquet")
    assert pd.read_parquet(members)["id"].tolist() == ["mp-3", "mp-7"]
    for name in ("convert", "graphs", "index"):
        done = stage(project, name)
        assert done.returncode == 0, done.stderr


def test_an_id_that_materials_project_lacks_is_named(project, materials):
    write_source(project, "mp:mp-3,mp-7,mp-8")
    with pytest.raises(AtomloomError, match="has no mp-8"):
        plan(project)


def test_materials_project_wants_a_key(project, monkeypatch):
    write_source(project, "mp:mp-3")
    monkeypatch.delenv("MP_API_KEY", raising=False)
    done = stage(project, "plan")
    assert done.returncode == 1
    assert "needs an API key; export MP_API_KEY" in done.stderr


def test_a_query_that_is_none_says_what_to_write(project, materials):
    write_source(project, "mp:silicon")
    with pytest.raises(AtomloomError, match=r"write `mp:mp-149,mp-13`"):
        plan(project)
