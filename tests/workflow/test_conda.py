"""`--sdm conda` with a stand-in for conda: environments hold what envs/*.yaml name, and jobs run in them.

The stand-in links the packages of this environment, and of what they require, into an empty one. It says nothing of
whether conda's channels have them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.workflow.project import ROOT, Project

CONDA = """#!PYTHON
import json, sys
from tests.workflow.test_conda import create
words = sys.argv[1:]
if words == ["info", "--json"]:
    print(json.dumps({"conda_prefix": "ROOT", "platform": "linux-64"}))
elif words == ["--version"]:
    print("conda 24.9.0")
elif words[:2] == ["config", "--get"]:
    print(json.dumps({"get": {"channel_priority": "strict"}}))
elif words[:2] == ["env", "create"]:
    create(words[words.index("--file") + 1], words[words.index("--prefix") + 1])
elif words[:1] != ["clean"]:
    sys.exit("not known to the stand-in: " + " ".join(words))
"""
ACTIVATE = 'export CONDA_PREFIX="$1"; export PATH="$1/bin:$PATH"\n'
OTHER_NAMES = {"pytorch-gpu": "torch"}


def closure(names: list[str]) -> set[str]:
    """The distributions of these names and all that they require here."""
    found: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                names.append(need.name)
    return found


def create(file: str, prefix: str) -> None:
    """Make an environment that holds what the file names."""
    wanted = []
    for item in yaml.safe_load(Path(file).read_text())["dependencies"]:
        for text in item["pip"] if isinstance(item, dict) else [item]:
            name = text.split("=")[0]
            if name not in ("python", "pip"):
                wanted.append(OTHER_NAMES.get(name, name))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    (site,) = Path(prefix, "lib").glob("python*/site-packages")
    (site / "sitecustomize.py").write_text(
        f"import sys; print(*sys.orig_argv, file=open({prefix + '/used'!r}, 'a'))\n"
    )
    for name in closure(wanted):
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or []}:
            source = Path(str(distribution.locate_file(top)))
            if top not in ("..", "__pycache__") and source.exists():
                (site / top).exists() or (site / top).symlink_to(source)


@pytest.fixture(scope="module")
def conda(tmp_path_factory) -> dict[str, str]:
    """Variables with which the stand-in is found."""
    root = tmp_path_factory.mktemp("conda")
    (root / "bin").mkdir()
    (root / "bin" / "conda").write_text(
        CONDA.replace("PYTHON", sys.executable).replace("ROOT", str(root))
    )
    (root / "bin" / "conda").chmod(0o755)
    (root / "bin" / "activate").write_text(ACTIVATE)
    own = os.environ.get("PYTHONPATH", "")
    return {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "workflow"), own]),
    }


@pytest.mark.slow
def test_jobs_run_in_the_environments_of_their_rules_with_the_atomloom_of_the_workflow(
    conda, tmp_path
):
    project = Project.create(tmp_path / "project", structures=24)
    output = project.snakemake("--sdm", "conda", **conda)
    assert (project.folder / "results" / "tiny" / "report.html").exists()
    assert len(re.findall(r"Environment for .*envs/(\w+)\.yaml created", output)) == 2
    link = project.folder / ".snakemake" / "atomloom"
    assert (link / "atomloom").resolve() == ROOT / "workflow" / "atomloom"
    jobs = {}
    for prefix in (project.folder / ".snakemake" / "conda").glob("*_"):
        words = re.findall(r"-m atomloom (\w+)", (prefix / "used").read_text())
        alone = {"PATH": os.environ["PATH"], "PYTHONPATH": str(link)}
        code = "import atomloom, importlib.util as u; print(bool(u.find_spec('torch')))"
        command = [prefix / "bin" / "python", "-P", "-c", code]
        done = subprocess.run(command, env=alone, capture_output=True, text=True, check=True)
        jobs[done.stdout.strip()] = set(words)
    assert jobs == {
        "False": {"plan", "convert", "graphs", "index", "split"},
        "True": {"train", "evaluate", "report"},
    }
