"""Published potentials that are known by name, and where their files lie.

Those of `POTENTIALS` come with the Python package `sevenn` (MIT license), trained on relaxations of the Materials
Project of 89 elements (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)), those of `CHGNET_WEIGHTS` with the package
`chgnet` (BSD license; Deng et al., Nat. Mach. Intell. 5, 1031 (2023)). Packages are looked up, never imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from atomloom.config.base import expand_variables
from atomloom.config.teacher import Calculator
from atomloom.errors import AtomloomError

PACKAGE = "sevenn"
POTENTIALS = {
    "sevennet-0": "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "sevennet-0-may2024": "SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
    "sevennet-l3i5": "SevenNet_l3i5/checkpoint_l3i5.pth",
    "sevennet-mf-0": "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
}
"""Files below `pretrained_potentials` of the package, by the name that a user says."""

CHGNET = "chgnet"
"""Name of the teacher, and of its package."""
CHGNET_WEIGHTS = {
    "0.3.0": "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
    "0.2.0": "0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
    "r2scan": "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
}
"""Files below `pretrained` of the package, by the name that its own loader has for them; the first is its default."""

_SEVENNET = {
    "name": "nequip",
    "features": (128, 64, 32),
    "parity": False,
    "layers": 5,
    "cutoff": 5.0,
    "unit_directions": True,
}
_XPLOR = {**_SEVENNET, "envelope": "xplor", "envelope_start": 4.5}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sevennet-0": {**_XPLOR, "neighbors": 35.989574},
    "sevennet-0-may2024": {**_XPLOR, "neighbors": 36.996296, "unit_directions": False},
    "sevennet-l3i5": {
        **_SEVENNET,
        "features": (128, 64, 32, 32),
        "envelope": "polynomial",
        "neighbors": 35.984718,
    },
    "sevennet-mf-0": {**_XPLOR, "neighbors": 35.989574, "bias": True},
}
"""Section `model` of each, known without reading its file."""
TRAINED_ON = "relaxations of the Materials Project"
"""Data that all of them were trained on."""


def published_file(path: str | Path) -> Path:
    """File of a published potential, where its name stands instead of a path; else the path as it is.

    Raises:
        AtomloomError: when the package is not installed, or has no such file.
    """
    name = str(path)
    if name not in POTENTIALS or Path(path).exists():
        return Path(path)
    return _packaged(
        PACKAGE,
        Path("pretrained_potentials", POTENTIALS[name]),
        name,
        "atomloom[foundation]",
        "0.13",
    )


def teacher_file(teacher: Calculator) -> Path | None:
    """File of a teacher's weights, whose content is part of the key of its labels; None where there is none.

    Raises:
        AtomloomError: as `published_file`.
    """
    named = teacher.model and expand_variables(teacher.model)
    if teacher.calculator != CHGNET:
        return published_file(named) if named else None
    name = named or next(iter(CHGNET_WEIGHTS))
    if name not in CHGNET_WEIGHTS or Path(name).exists():
        return Path(name)
    return _packaged(
        CHGNET, Path("pretrained", CHGNET_WEIGHTS[name]), f"CHGNet {name}", "chgnet==0.4.2", "0.4.2"
    )


def model_behind(calculator: Calculator) -> str | None:
    """Name of the trained model that a calculator is, as the config has it; None for one that learnt nothing."""
    if calculator.calculator != CHGNET:
        return calculator.model
    return f"CHGNet {calculator.model or next(iter(CHGNET_WEIGHTS))}"


def is_published(name: str) -> bool:
    """Whether a model, by the name that `model_behind` gives or a config has, is one of the published ones."""
    return name in POTENTIALS or name in {f"CHGNet {weights}" for weights in CHGNET_WEIGHTS}


def _packaged(package: str, inside: Path, name: str, requirement: str, version: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise AtomloomError(
            f"{name} lies in the package {package}, which is not installed",
            todo=f"pip install '{requirement}'",
        )
    found = Path(spec.submodule_search_locations[0], inside)
    if not found.exists():
        raise AtomloomError(
            f"the installed package {package} does not have {name}",
            where=found,
            todo=f"install {package} {version}",
        )
    return found
