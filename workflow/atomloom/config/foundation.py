"""Published potentials that are known by name, and where their files lie.

They come with the Python package `sevenn` (MIT license), trained on relaxations of the Materials Project
of 89 elements (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)). The package is looked up, never imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from atomloom.errors import AtomloomError

PACKAGE = "sevenn"
POTENTIALS = {
    "sevennet-0": "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "sevennet-0-may2024": "SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
    "sevennet-l3i5": "SevenNet_l3i5/checkpoint_l3i5.pth",
    "sevennet-mf-0": "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
}
"""Files below `pretrained_potentials` of the package, by the name that a user says."""

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


def published_file(path: str | Path) -> Path:
    """File of a published potential, where its name stands instead of a path; else the path as it is.

    Raises:
        AtomloomError: when the package is not installed, or has no such file.
    """
    name = str(path)
    if name not in POTENTIALS or Path(path).exists():
        return Path(path)
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise AtomloomError(
            f"{name} lies in the package {PACKAGE}, which is not installed",
            todo="pip install 'atomloom[foundation]'",
        )
    found = Path(spec.submodule_search_locations[0], "pretrained_potentials", POTENTIALS[name])
    if not found.exists():
        raise AtomloomError(
            f"the installed package {PACKAGE} does not have {name}",
            where=found,
            todo=f"install {PACKAGE} 0.13",
        )
    return found
