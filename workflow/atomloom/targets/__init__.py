"""Targets: what is predicted, as data that every stage loops over.

A kind of target is one module with one class and one line in `KINDS`. It knows nothing of torch, of
files and of the config.
"""

from __future__ import annotations

from importlib import import_module

from atomloom.errors import AtomloomError
from atomloom.targets.base import TargetSpec

__all__ = ["KINDS", "TargetSpec", "spec_of"]

KINDS = {
    "scalar": "atomloom.targets.scalar:Scalar",
    "energy": "atomloom.targets.energy:Energy",
    "forces": "atomloom.targets.forces:Forces",
    "stress": "atomloom.targets.stress:Stress",
}
"""Name of a kind -> "module:Class"."""


def spec_of(name: str, kind: str, unit: str = "") -> TargetSpec:
    """The spec of a target.

    Args:
        name: of the target, as `dataset.target` has it.
        kind: one of `KINDS`.
        unit: its unit; that of the kind where it has one.

    Raises:
        AtomloomError: when there is no such kind.
    """
    if kind not in KINDS:
        raise AtomloomError(
            f"unknown kind of target `{kind}`", todo=f"choose from {', '.join(KINDS)}"
        )
    module, _, attribute = KINDS[kind].partition(":")
    found = getattr(import_module(module), attribute)
    return found(name, unit) if unit else found(name)
