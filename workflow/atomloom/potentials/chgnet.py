"""CHGNet as an ASE calculator, by its own package (Deng et al., Nat. Mach. Intell. 5, 1031 (2023)).

Its files are archives that the package itself would unpickle. Those that it comes with hold tensors and plain
values alone, so they are read by PyTorch's restricted reader, which runs no code, and the package is given what
was read. Everything else is the package's: energies in eV, forces, and stress, which it turns from GPa into eV/A^3.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomloom.config.foundation import CHGNET_WEIGHTS
from atomloom.errors import AtomloomError
from atomloom.inference.foreign import read_torch_file

if TYPE_CHECKING:
    import ase
    from ase.calculators.calculator import Calculator

HEAVIEST = 94
"""Atomic number of the last element that CHGNet has an embedding for."""
NO_OPTIONS = ("model", "kwargs")
"""Parameters of `CHGNetCalculator` that are not for a config."""


def chgnet_calculator(file: Path, **options: Any) -> Calculator:
    """Create the calculator with the weights of a file.

    Args:
        file: that comes with the package, or that its trainer saved.
        options: of `CHGNetCalculator`. An atom without neighbours is an error unless `on_isolated_atoms` says otherwise:
            CHGNet has learnt none, and by itself only warns.

    Raises:
        AtomloomError: when the file is not there, cannot be read without running code, or is not CHGNet's, or an option
            is unknown.
    """
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    known = [name for name in signature(CHGNetCalculator).parameters if name not in NO_OPTIONS]
    unknown = sorted(set(options) - set(known))
    if unknown:  # the class would keep them for nothing
        raise AtomloomError(
            f"chgnet: no option `{unknown[0]}`",
            where="teacher.options",
            todo=f"known are {', '.join(known)}; teacher.model names the weights",
        )

    class AnyCell(CHGNetCalculator):
        """CHGNet for molecules, too, which have no cell or less than three vectors of one."""

        def calculate(self, atoms: ase.Atoms | None = None, *arguments: Any, **named: Any) -> None:
            assert atoms is not None
            if (heaviest := max(atoms.numbers, default=0)) > HEAVIEST:
                raise ValueError(f"CHGNet knows elements 1 to {HEAVIEST}, not {heaviest}")
            boxed = atoms.copy()
            boxed.set_cell(atoms.cell.complete())
            super().calculate(boxed, *arguments, **named)
            self.atoms = atoms.copy()  # those that the results are of

    if not file.exists():
        raise AtomloomError(
            "no weights here",
            where=file,
            todo=f"teacher.model is one of {', '.join(CHGNET_WEIGHTS)}, or a file",
        )
    content = read_torch_file(file, "CHGNet")
    with redirect_stdout(StringIO()):  # both greet
        try:
            biased = any(
                name.endswith("mlp_out.layers.1.bias") for name in content["model"]["state_dict"]
            )
            model = CHGNet.from_dict(content["model"], mlp_out_bias=biased)  # only version 0.2.0 is
        except Exception as error:  # its constructor takes whatever the file says
            raise AtomloomError(
                f"is not a model that CHGNet has saved: {error!r}"[:200], where=file
            ) from None
        return AnyCell(model, **{"on_isolated_atoms": "error", **options})
