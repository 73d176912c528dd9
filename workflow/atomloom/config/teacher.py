"""The `teacher` section: a calculator that computes the labels instead of reading them."""

from __future__ import annotations

from pydantic import Field

from atomloom.config.base import Options, Section, unkeyed

TAUGHT = ("energy", "forces", "stress")
"""Properties with which a teacher labels structures."""


class Calculator(Section):
    """Calculator of energies, forces and stress."""

    calculator: str = Field(min_length=1)
    """`gfn1-xtb` or `gfn2-xtb` (tblite), `emt` (ASE's effective medium theory for metals), `chgnet` (CHGNet by
    its own package), `atomloom` (a trained potential), or any class of ASE calculators as `module:Class`. A config that names
    one runs its code: check this line before you use a config from others."""
    options: Options = {}
    """Keyword arguments of the calculator."""
    model: str | None = unkeyed(None)
    """For `atomloom`: the model file. For `chgnet`: `0.3.0` (default), `0.2.0` or `r2scan`, the weights that come
    with the package, or a file that CHGNet has saved. Its content, not its name, is in the key."""


class Teacher(Calculator):
    """Calculator that labels the structures with energies, forces and, where cells are periodic,
    stress. Labels are kept in the store by structure and teacher, and computed once."""

    dynamics_steps: int = unkeyed(100, ge=0, le=100_000)
    """Steps of 1 fs at 300 K in which a potential learnt from this teacher is compared with it when it is
    evaluated; 0 for none."""
