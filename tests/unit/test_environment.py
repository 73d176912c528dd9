"""The environment files agree with each other, and no registry's address stands in the project."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import atomloom

ROOT = Path(__file__).resolve().parents[2]


def lock() -> dict[str, str]:
    lines = (ROOT / "envs" / "requirements.lock").read_text().splitlines()
    pins = [line.partition(";")[0] for line in lines if line and not line.startswith("#")]
    return dict(pin.strip().lower().split("==") for pin in pins)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_holds_names_versions_and_markers_only():
    for line in (ROOT / "envs" / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.!]+(; [a-z_]+ .*)?", line), line


def test_lock_holds_every_dependency_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for items in project["optional-dependencies"].values() for item in items]
    locked = {normal(name) for name in lock()}
    for requirement in project["dependencies"] + extras:
        assert normal(re.split(r"[<>=!~\[ ]", requirement)[0]) in locked, requirement


@pytest.mark.parametrize("file", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.name)
def test_conda_environments_agree_with_the_lock(file):
    locked = {normal(name): version for name, version in lock().items()}
    dependencies = yaml.safe_load(file.read_text())["dependencies"]
    plain = [item for item in dependencies if isinstance(item, str)]
    plain += [item for extra in dependencies if isinstance(extra, dict) for item in extra["pip"]]
    conda_names = {"pytorch": "torch", "pytorch-gpu": "torch"}
    checked = 0
    for item in plain:
        name, _, version = re.fullmatch(r"([^=\s]+)(\s*={1,2}\s*(.*))?", item).groups()
        if name in ("python", "pip", "cuda-version"):
            continue
        assert locked[normal(conda_names.get(name, name))] == version, item
        checked += 1
    assert checked > 5


def test_no_file_names_a_package_registry():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if files.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(
        "|".join([r"py" + r"pi\.org", r"python" + r"hosted", r"npm" + r"js\.", r"index" + r"-url"])
    )
    for name in files.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".png", ".zip"} or not path.is_file():
            continue
        assert not pattern.search(path.read_text(errors="ignore")), name


@pytest.fixture
def makefile(tmp_path) -> Path:
    """Folder with what `make` needs to set up the environment."""
    for name in ("Makefile", "pyproject.toml", "envs/requirements.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def make(folder: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout + done.stderr


def fake_python(path: Path, version: str) -> Path:
    """A program that says of itself what the Makefile asks a Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""#!/bin/sh
case "$2" in *print*version_info*) echo {version};; *sys.exit*) exit {int(version < "3.11")};; *) echo "$0";; esac
"""
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_make_takes_the_python_that_is_named(makefile, version):
    python = fake_python(makefile / "some" / "python", version)
    said = make(makefile, "-n", "run", f"PYTHON={python}")
    assert f"python=$({python} -c" in said
    assert "rm -rf" not in said


def test_make_refuses_a_python_that_is_too_old_in_one_line(makefile):
    python = fake_python(makefile / "some" / "python", "3.10")
    said = make(makefile, "run", f"PYTHON={python}", check=False)
    assert "Python 3.11, 3.12 or 3.13 is needed" in said
    assert not (makefile / ".venv").exists()


def test_make_sets_up_again_for_another_python_or_torch_and_for_nothing_else(makefile):
    fake_python(makefile / ".venv" / "bin" / "python", "3.12")
    (makefile / ".venv" / ".torch").write_text("cpu\n")
    (makefile / ".venv" / ".ready").touch()
    same = fake_python(makefile / "same" / "python", "3.12")
    other = fake_python(makefile / "other" / "python", "3.13")
    for arguments in ([], [f"PYTHON={same}"], ["TORCH=cpu"], ["TORCH=http://wheels.example/cpu/"]):
        assert "venv .venv" not in make(makefile, "-n", "run", *arguments), arguments
    for arguments in ([f"PYTHON={other}"], ["TORCH=cu126"], ["TORCH=http://wheels.example/cu126"]):
        assert "rm -rf .venv;" in make(makefile, "-n", "run", *arguments), arguments


def test_make_asks_for_exactly_the_build_of_torch_that_is_named(makefile):
    said = make(makefile, "-n", "run", "TORCH=http://wheels.example/whl/cu126/")
    assert 'PIP_EXTRA_INDEX_URL="http://wheels.example/whl/cu126/ $PIP_EXTRA_INDEX_URL"' in said
    assert "\"$(grep '^torch==' envs/requirements.lock)+cu126\"" in said
    assert "PIP_EXTRA_INDEX_URL" not in make(makefile, "-n", "run", "TORCH=cu126")
    assert "+" not in make(makefile, "-n", "run").split("requirements.lock")[1].split("\n")[0]


def test_one_version_stands_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version == atomloom.__version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)


def test_the_changelog_is_in_the_form_it_names():
    text = (ROOT / "CHANGELOG.md").read_text()
    kinds = "Added|Changed|Deprecated|Removed|Fixed|Security"
    assert "\n## Unreleased\n" in text
    assert all(re.fullmatch(kinds, kind) for kind in re.findall(r"^### (.*)", text, re.M))


def test_types_are_shipped():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    assert "py.typed" in data["atomloom"]
    assert (Path(atomloom.__file__).parent / "py.typed").exists()


def test_checks_before_a_commit_are_those_of_the_environment():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    for hook in repos[0]["hooks"]:
        folder, tool = hook["entry"].split()[0].rsplit("/", 1)
        assert folder == ".venv/bin"
        assert tool == "python" or tool in lock()


def test_lint_and_the_checks_before_a_commit_look_at_the_same_folders():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    folders = {re.search(r"\((.*)\)", h["files"])[1] for h in hooks if "ruff" in h["entry"]}
    lines = re.findall(r"\bruff (?:format --check|check) (.*)", (ROOT / "Makefile").read_text())
    assert [line.split() for line in lines] == [folders.pop().split("|")] * 2
    assert not folders
    python = {Path(name).parts[0] for name in _tracked("*.py")}
    assert python <= set(lines[0].split())


def _tracked(pattern: str) -> list[str]:
    command = ["git", "ls-files", pattern]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
