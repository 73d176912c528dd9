"""What Dockerfile and apptainer.def do, as far as it can be known without a container engine.

The files are compared with the lock and with each other. Planning is tried with a read-only root and no privileges
on this machine's own file system.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.workflow.project import PROJECT_FILES, ROOT, Project, counts

DOCKER = (ROOT / "Dockerfile").read_text()
APPTAINER = (ROOT / "apptainer.def").read_text()
LOCK = ROOT / "envs" / "requirements.lock"


def commands(text: str, start: str) -> list[str]:
    """Commands of pip, without the words before them."""
    return [line.strip().removeprefix(start) for line in text.splitlines() if "pip install" in line]


def test_both_install_the_lock_and_then_the_package_alone():
    found = commands(DOCKER, "RUN ")
    assert found == commands(APPTAINER, "")
    lock, package = found
    assert " -r /opt/atomloom/requirements.lock " in lock
    assert "--no-deps" in package
    assert not re.findall(r"[a-z]+==\d", DOCKER + APPTAINER), "versions stand in the lock alone"


def test_both_start_from_one_python_that_the_package_takes():
    images = re.findall(r"^F(?:ROM|rom):? (.+)$", DOCKER + APPTAINER, re.M)
    assert len(images) == 2
    assert len(set(images)) == 1
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert re.match(r"python:(3\.\d+)-", images[0])[1] in SpecifierSet(wanted)


def test_both_take_all_that_the_package_is_built_from():
    docker = re.findall(r"^COPY (.+) \S+$", DOCKER, re.M)
    copied = {name for line in docker for name in line.split()}
    section = APPTAINER.split("%files\n")[1].split("\n\n")[0]
    assert copied == {line.split()[0] for line in section.splitlines()}
    assert all((ROOT / name).exists() for name in copied)
    assert copied >= {Path(name).parts[0] for name in PROJECT_FILES} | {"setup.py", "README.md"}


def torch_asked_for(torch: str) -> list[str]:
    """Words that the shell gives pip, for a value of TORCH."""
    line = commands(APPTAINER, "")[0].replace("/opt/atomloom/requirements.lock", str(LOCK))
    line = line.replace("pip install", "printf '%s\\n' \"$PIP_EXTRA_INDEX_URL\"")
    line = line.replace('PIP_EXTRA_INDEX_URL="$TORCH" ', 'PIP_EXTRA_INDEX_URL="$TORCH"; ')
    done = subprocess.run(
        ["sh", "-c", line], env={**os.environ, "TORCH": torch}, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def test_a_build_of_torch_is_asked_for_by_name():
    (pin,) = re.findall(r"^torch==.*", LOCK.read_text(), re.M)
    assert torch_asked_for("https://wheels.example/whl/cu126")[-1] == f"{pin}+cu126"
    assert torch_asked_for("https://wheels.example/whl/cu126")[0].endswith("/cu126")
    assert torch_asked_for("")[-1] == str(LOCK)


def test_the_image_of_docker_is_nobody_special():
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", DOCKER, re.M)
    assert DOCKER.rindex("USER") > DOCKER.rindex("RUN ")


@pytest.mark.slow
def test_the_workflow_is_planned_without_privileges_and_a_writable_root(tmp_path):
    unshare = [shutil.which("unshare") or "unshare", "--mount", "sh", "-ec"]
    setup = (
        f"mount --make-rprivate / && mount --bind '{tmp_path / 'project'}' /mnt "
        "&& mount -o remount,bind,ro / && mount -t tmpfs tmpfs /tmp && cd /mnt "
        "&& exec setpriv --bounding-set=-all --inh-caps=-all "
    )
    Project.create(tmp_path / "project", structures=24)
    variables = dict(
        word.split("=") for word in re.search(r"^ENV (.+)$", DOCKER, re.M)[1].split()
    ) | {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"}

    def inside(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*unshare, setup + command], env=variables, capture_output=True, text=True
        )

    if os.getuid() != 0 or inside("true").returncode or str(ROOT).startswith("/tmp/"):
        pytest.skip("no mount namespaces here")
    assert inside(f"touch '{ROOT}/written'").returncode, "the root is writable"
    assert inside("touch written").returncode == 0
    run = inside(f"{sys.executable} -m atomloom plan --config my.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    done = inside(f"{sys.executable} -m snakemake -n --configfile my.yaml --cores 2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "convert" in counts(done.stdout + done.stderr)
