"""Targets of prediction, as data that every stage loops over.

A kind of target is one module with one class and one line in `KINDS`. It knows nothing of torch,
files or the config.
"""

from __future__ import annotations

from importlib import import_module

from atomloom.errors import AtomloomError
from atomloom.targets.base import TargetSpec

__all__ = ["KINDS", "TargetSpec", "kind_class", "kind_named", "spec_of"]

KINDS = {
    "scalar": "atomloom.targets.scalar:Scalar",
    "energy": "atomloom.targets.energy:Energy",
    "forces": "atomloom.targets.forces:Forces",
    "stress": "atomloom.targets.stress:Stress",
    "vector": "atomloom.targets.vector:Vector",
    "per_atom": "atomloom.targets.per_atom:PerAtom",
}
"""Name of a kind -> "module:Class"."""


def kind_class(kind: str) -> type[TargetSpec]:
    """Class of a kind of targets.

    Raises:
        AtomloomError: when there is no such kind.
    """
    if kind not in KINDS:
        raise AtomloomError(
            f"unknown kind of target `{kind}`", todo=f"choose from {', '.join(KINDS)}"
        )
    module, _, attribute = KINDS[kind].partition(":")
    return getattr(import_module(module), attribute)


def kind_named(name: str) -> str:
    """Kind to which a target of this name belongs; `scalar` if none claims it."""
    return next((kind for kind in KINDS if name in kind_class(kind).names), "scalar")


def spec_of(name: str, kind: str, unit: str = "") -> TargetSpec:
    """Spec of a target.

    Args:
        name: of the target, as in `dataset.target`.
        kind: one of `KINDS`.
        unit: its unit; a kind with its own unit keeps that.

    Raises:
        AtomloomError: when there is no such kind.
    """
    found = kind_class(kind)
    return found(name) if found.unit else found(name, unit)
