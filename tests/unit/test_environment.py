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
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_holds_names_and_versions_only():
    for line in (ROOT / "envs" / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line


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
