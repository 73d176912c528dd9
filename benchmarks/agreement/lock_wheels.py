"""Whether envs/requirements.lock can be installed on other Pythons and systems, by pip's own resolution.

    python -m benchmarks.agreement.lock_wheels [--only "3.12 macOS 14 arm64"]

For each Python and system: the packages that the markers of the lock ask for there, those without a wheel (pip
builds them from source), and what they require of each other that is in no line of the lock. Nothing is
installed or downloaded but metadata, which takes pip 26. Needs a package registry, as pip is configured. What
torch requires is not looked at: on Linux it pins packages of CUDA and Triton, other ones in each build.
Writes benchmarks/results/lock_wheels.json.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.common.results import ROOT, Parser, read_result, write_result

PYTHONS = ("3.11", "3.12", "3.13")
GLIBC = (17, 24, 26, 27, 28, 31, 34, 35)
"""Minor versions of glibc 2 that wheels are built for, up to that of Ubuntu 22.04."""


def _linux(machine: str) -> tuple[dict[str, str], list[str]]:
    tags = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC] + [f"manylinux2014_{machine}"]
    more = [f"manylinux1_{machine}", f"manylinux2010_{machine}"] if machine == "x86_64" else []
    names = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    return names | {"platform_machine": machine}, [*tags, *more, f"linux_{machine}"]


def _mac(version: int) -> tuple[dict[str, str], list[str]]:
    names = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"}
    return names | {"platform_machine": "arm64"}, [f"macosx_{version}_0_arm64"]


SYSTEMS: dict[str, tuple[dict[str, str], list[str]]] = {
    "Linux x86_64": _linux("x86_64"),
    "Linux aarch64": _linux("aarch64"),
    "macOS 14 arm64": _mac(14),
    "Windows AMD64": (
        {
            "sys_platform": "win32",
            "platform_system": "Windows",
            "os_name": "nt",
            "platform_machine": "AMD64",
        },
        ["win_amd64"],
    ),
}
"""System -> its values in markers, and the tags of its wheels."""

TARGETS = tuple(f"{python} {system}" for system in SYSTEMS for python in PYTHONS)


def lock_lines() -> list[Requirement]:
    """Lines of the lock."""
    text = (ROOT / "envs" / "requirements.lock").read_text()
    return [Requirement(line) for line in text.splitlines() if line and line[0] != "#"]


def environment(target: str) -> dict[str, str]:
    """Values of the variables in markers."""
    python, _, system = target.partition(" ")
    names = {"python_version": python, "python_full_version": f"{python}.0", "platform_release": ""}
    names |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return names | {"implementation_version": f"{python}.0", "extra": ""} | SYSTEMS[system][0]


def wanted(requirement: Requirement, names: dict[str, str], extras: set[str]) -> bool:
    """Whether a requirement counts for a target, and for any of the extras asked for."""
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**names, "extra": e}) for e in {"", *extras})


def resolve(target: str) -> dict[str, Any]:
    """Resolve the lock for one Python and system."""
    names = environment(target)
    pins = [line for line in lock_lines() if wanted(line, names, set())]
    built: list[Requirement] = []
    while isinstance(report := _report(target, [p for p in pins if p not in built]), str):
        built += [pin for pin in pins if canonicalize_name(pin.name) == report]
    reports = report["install"]
    found = {canonicalize_name(one["metadata"]["name"]): one["metadata"] for one in reports}
    pinned = {canonicalize_name(pin.name): str(pin.specifier).strip("=") for pin in pins}
    return {
        "packages": len(pins),
        "from_source": [str(pin) for pin in built],
        "not_in_lock": sorted(set(_unmet(found, pinned, names))),
        "left_out_by_markers": [line.name for line in lock_lines() if line not in pins],
    }


def _report(target: str, pins: list[Requirement]) -> dict[str, Any] | str:
    """Report of pip on the pins, or the name of one that has no wheel."""
    python, _, system = target.partition(" ")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet"]
        command += ["--ignore-installed", "--only-binary=:all:", "--implementation", "cp"]
        command += ["--python-version", python, "--target", folder, "--report", str(report)]
        command += [part for tag in SYSTEMS[system][1] for part in ("--platform", tag)]
        command += [f"{pin.name}{pin.specifier}" for pin in pins]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(report.read_text())
        missing = re.search(r"No matching distribution found for ([\w.-]+)==", done.stderr)
        return canonicalize_name(missing[1]) if missing else sys.exit(done.stderr)


def _unmet(
    found: dict[str, dict[str, Any]], pinned: dict[str, str], names: dict[str, str]
) -> Iterator[str]:
    """Requirements that no line of the lock satisfies, each with the package that has it; not those of torch."""
    todo: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in {*found} - {"torch"}]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        for text in found[name].get("requires_dist", []):
            need = Requirement(text)
            if not wanted(need, names, set(extras)):
                continue
            other = canonicalize_name(need.name)
            pin = pinned.get(other)
            if pin is None or not need.specifier.contains(pin, prereleases=True):
                yield f"{name}: {need.name}{need.specifier}"
            elif need.extras and (again := (other, frozenset(need.extras))) not in seen:
                seen.add(again)
                if other in found:
                    todo.append(again)


def main() -> None:
    """Resolve all targets and write the table after each."""
    parser = Parser(__doc__)
    parser.add_argument("--only", choices=TARGETS, metavar="TARGET", help="one Python and system")
    options = parser.parse_args()
    if int(metadata.version("pip").partition(".")[0]) < 26:
        raise SystemExit("pip 26 or later is needed: an earlier one would download every wheel")
    found = read_result("lock_wheels")
    for target in [options.only] if options.only else TARGETS:
        found[target] = resolve(target)
        print(target, found[target], flush=True)
        if options.write:
            write_result("lock_wheels", found)


if __name__ == "__main__":
    main()
