"""Ordering of partially occupied crystals with pymatgen, for readers whose option `order` is true.

Most take a second, some would take hours. So the work is done by a separate process that interrupts
itself when its processor time for one crystal is used up; it is started with the first crystal, takes
one after the other as a line of JSON, and ends when there has been none for a minute.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import RECORD
from atomloom.structures.adapters import to_structure
from atomloom.structures.elements import atomic_numbers
from atomloom.structures.structure import Structure

log = logging.getLogger(__name__)

OPTIONS = {
    "order": "true: order a partially occupied structure with pymatgen instead of refusing it",
    "order_seconds": "max processor time for ordering one structure; default 60 s",
}
TODO = "set the option `order: true` to order it with pymatgen"

SECONDS = 60.0
ROUNDING = 0.005
"""Rounding error of an occupancy written with two decimals."""
MAX_ROUNDING = 0.25
"""Max number of missing or surplus atoms in total; pymatgen refuses more."""
ALIKE = 0.1

_IDLE = 60  # s without a crystal, after which the process ends
_SILENT = 10.0  # s after which the log names the crystal being ordered
_PATIENCE = 10  # times the processor time, in wall time, on a busy machine


def ordered(structure: Any, options: Mapping[str, Any]) -> Structure:
    """Arrangement of lowest electrostatic energy, as found by pymatgen's transformation.

    Args:
        structure: a pymatgen Structure, disordered or not.
        options: `order_seconds`, see `OPTIONS`.

    Raises:
        AtomloomError: when the cell cannot be ordered, or not in time.
    """
    if structure.is_ordered:
        return to_structure(structure)
    sites = [_shares(species) for species in structure.species_and_occu]
    refuse_fractions(sites)
    seconds = float(options.get("order_seconds", SECONDS))
    cell, pbc = np.array(structure.lattice.matrix), np.array(structure.lattice.pbc)
    fractional = np.array(structure.frac_coords)
    if all(len(site) == 1 and abs(sum(site.values()) - 1) <= ROUNDING for site in sites):
        return Structure(
            atomic_numbers(s for site in sites for s in site), fractional @ cell, cell, pbc
        )
    request = {
        "cell": cell.tolist(),
        "pbc": pbc.tolist(),
        "sites": sites,
        "fractional": fractional.tolist(),
        "seconds": seconds,
    }
    answer = _WORKER.ask(request)
    if answer.get("late"):
        raise AtomloomError(
            f"disordered, and ordering it takes more than {seconds:g} s",
            todo="set the option `order_seconds` to give it more",
        )
    if "error" in answer:
        raise AtomloomError(f"disordered, and pymatgen cannot order it: {answer['error']}")
    return Structure(
        np.array(answer["numbers"], dtype=np.uint8),
        np.array(answer["fractional"], dtype=np.float64) @ cell,
        cell,
        pbc,
    )


def _shares(species: Any) -> dict[str, float]:
    """Occupancies of a site by element, whatever the oxidation states."""
    shares: dict[str, float] = {}
    for kind, share in species.items():
        symbol = getattr(kind, "element", kind).symbol
        shares[symbol] = shares.get(symbol, 0.0) + float(share)
    return shares


def refuse_fractions(sites: Sequence[Mapping[str, float]]) -> None:
    """Refuse a cell that holds a fraction of an atom, which no arrangement of atoms can match.

    Sites of the same occupancies are filled together; rounded decimals are corrected.

    Raises:
        AtomloomError: naming the element and its number of atoms in the cell.
    """
    for group in _groups(sites):
        allowed = min(ROUNDING * len(group), MAX_ROUNDING) + 1e-9
        for symbol, total in _totals(group).items():
            if abs(total - round(total)) > allowed:
                raise AtomloomError(
                    f"disordered, and its cell holds a fraction of an atom: {total:.4g} {symbol} on "
                    f"{len(group)} site{'s' * (len(group) > 1)}",
                    todo="give a supercell that holds whole atoms",
                )


def _groups(sites: Sequence[Mapping[str, float]]) -> list[list[Mapping[str, float]]]:
    """Groups of sites that are filled together: as in pymatgen, those whose occupancies differ by less
    than a tenth."""
    groups: list[list[Mapping[str, float]]] = []
    for site in sites:
        for group in groups:
            first = group[0]
            if first.keys() == site.keys() and all(
                abs(share - first[symbol]) <= ALIKE * (share + first[symbol]) / 2
                for symbol, share in site.items()
            ):
                group.append(site)
                break
        else:
            groups.append([site])
    return groups


def _totals(group: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Number of atoms of each element on the sites of a group."""
    return {symbol: math.fsum(site[symbol] for site in group) for symbol in group[0]}


# --- the process that orders ---


class _Worker:
    """Worker process, started when needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer; the log names a record that takes long.

        Raises:
            AtomloomError: when the process ends without one.
        """
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            try:
                for _ in range(2):  # it may have ended, being idle, at just this moment
                    answer = self._exchange(line, request["seconds"])
                    if answer:
                        return json.loads(answer)
                    self.stop()
            except BaseException:  # interrupted: the next one must not get this one's answer
                self.stop()
                raise
        raise AtomloomError("disordered, and the process that orders it ended: out of memory?")

    def _exchange(self, line: bytes, seconds: float) -> bytes:
        """Send a request and wait for the answer; empty where the process ended."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(line)
            process.stdin.flush()
        if not select.select([process.stdout], [], [], _SILENT)[0]:
            log.warning("%s: is being ordered", RECORD.get() or "a disordered structure")
            # it interrupts itself, unless it is in a call that cannot be interrupted
            if not select.select([process.stdout], [], [], _PATIENCE * (seconds + _IDLE))[0]:
                self.stop()
                return b'{"late": true}'
        return process.stdout.readline()

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            command = f"from {__name__} import serve; serve()"
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            )
        return self._process


_WORKER = _Worker()
atexit.register(_WORKER.stop)


class _Late(BaseException):
    """Timeout that a library which catches every `Exception` does not catch."""


def serve() -> None:
    """Answer requests, one per line, until there has been none for a while."""

    def interrupt(*_: Any) -> None:
        raise _Late

    signal.signal(signal.SIGVTALRM, interrupt)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries is not an answer
    warnings.simplefilter("ignore")
    while True:
        signal.alarm(_IDLE)
        line = sys.stdin.buffer.readline()
        signal.alarm(0)
        if not line:
            return
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            import pymatgen.transformations.standard_transformations  # noqa: F401 - before its time starts

            # repeatedly, in case a library swallows the exception
            signal.setitimer(signal.ITIMER_VIRTUAL, request["seconds"], 1.0)
            answer = _order(request)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except _Late:
            answer = {"late": True}
        except Exception as error:  # whatever pymatgen raises, the record cannot be ordered
            answer = {"error": str(error) or type(error).__name__}
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _order(request: Mapping[str, Any]) -> dict[str, Any]:
    from pymatgen.core import Lattice
    from pymatgen.core import Structure as Crystal
    from pymatgen.transformations.standard_transformations import (
        OrderDisorderedStructureTransformation,
        OxidationStateDecorationTransformation,
    )

    sites = request["sites"]
    lattice = Lattice(request["cell"], pbc=(*request["pbc"],))
    crystal = Crystal(lattice, sites, request["fractional"])
    states = _oxidation_states(sites)
    charged = OxidationStateDecorationTransformation(states).apply_transformation(crystal)
    found: Any = OrderDisorderedStructureTransformation().apply_transformation(charged)
    found.remove_oxidation_states()
    return {
        "numbers": [site.specie.Z for site in found],
        "fractional": found.frac_coords.tolist(),
    }


def _oxidation_states(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Most likely oxidation states that balance; zeros where none do.

    They are those of the smallest whole formula: a large cell has too many combinations.
    """
    from pymatgen.core import Composition

    counts: Counter[str] = Counter()
    for group in _groups(sites):
        counts.update({symbol: round(total) for symbol, total in _totals(group).items()})
    common = reduce(math.gcd, counts.values()) or 1
    whole = Composition({symbol: count // common for symbol, count in counts.items() if count})
    guesses = whole.oxi_state_guesses()
    states = guesses[0] if guesses else {}
    return {symbol: states.get(symbol, 0) for symbol in counts}
