"""Do our CIF reader and pymatgen's give the same structures? Every file of mp36k, one by one.

    python -m benchmarks.agreement.cif_agreement [--most N]

Two structures agree when elements are the same, the lattices' metric tensors agree to 1e-5
(relative to the largest entry) and fractional coordinates to 1e-5, modulo lattice vectors. Coordinates that
pymatgen rounds to a simple fraction are counted apart; files that differ are listed with what differs. Writes
benchmarks/results/cif_agreement.json.
"""

from __future__ import annotations

import time
import warnings
from itertools import islice

import numpy as np
from pymatgen.core import Structure as PymatgenStructure

from atomloom.readers.registry import parse_record
from atomloom.readers.sources import enumerate_records
from benchmarks.common.results import Parser, data_path, write_result

TOLERANCE = 1e-5
SNAPPED = 1e-4
"""pymatgen puts coordinates this near to a twelfth onto it; ours stay as written."""
ROUNDED = "pymatgen rounded coordinates to a fraction"
LISTED = 50


def main() -> None:
    """Compare, print, write the result."""
    parser = Parser(__doc__)
    parser.add_argument("--most", type=int, help="stop after so many files")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    files = agree = 0
    seconds = {"atomloom": 0.0, "pymatgen": 0.0}
    differ: list[str] = []
    rounded = 0
    archive = data_path("mp36k_crysxpp/cif.tar.xz")
    for record in islice(enumerate_records([archive]), options.most):
        files += 1
        start = time.perf_counter()
        ours = parse_record(record.format, record.payload, record.id)
        middle = time.perf_counter()
        theirs = PymatgenStructure.from_str(record.payload.decode(), fmt="cif", primitive=False)
        seconds["atomloom"] += middle - start
        seconds["pymatgen"] += time.perf_counter() - middle
        difference = compare(ours, theirs)
        agree += not difference
        rounded += difference == ROUNDED
        if difference and difference != ROUNDED:
            differ.append(f"{record.id}: {difference}")
            print(differ[-1], flush=True)
    result = {
        "files": files,
        "agree": agree,
        "rounded_by_pymatgen": rounded,
        "differ": len(differ),
        "differences": differ[:LISTED],
        "tolerance": TOLERANCE,
        "times_pymatgen": round(seconds["pymatgen"] / seconds["atomloom"], 1),
    }
    if options.write:
        write_result("cif_agreement", result)
    print(
        f"{agree:,} of {files:,} CIFs agree with pymatgen, {rounded:,} but for fractions it rounds to, "
        f"{len(differ):,} differ; ours reads {result['times_pymatgen']} times as fast"
    )


def compare(ours, theirs: PymatgenStructure) -> str:
    """Difference between two structures in words; empty where there is none.

    Args:
        ours: a Structure of atomloom, [N] atoms.
        theirs: the same of pymatgen.
    """
    numbers = np.array([site.specie.Z for site in theirs])
    if sorted(ours.numbers.tolist()) != sorted(numbers.tolist()):
        return f"{len(ours)} atoms against {len(theirs)}, or other elements"
    metric, reference = (m @ m.T for m in (ours.cell, theirs.lattice.matrix))
    off = np.abs(metric - reference).max() / np.abs(reference).max()
    if off > TOLERANCE:
        return f"metric tensor off by {off:.1e}"
    fractional, reference = ours.positions @ np.linalg.inv(ours.cell), theirs.frac_coords
    if not np.array_equal(ours.numbers, numbers):  # pymatgen sorts some: pair each with the nearest
        apart = fractional[:, None] - reference[None]
        apart = np.abs(apart - np.rint(apart)).max(axis=2)
        apart[ours.numbers[:, None] != numbers[None]] = np.inf
        pair = apart.argmin(axis=1)
        if len(np.unique(pair)) < len(pair):
            return "atoms cannot be paired"
        reference = reference[pair]
    off = np.abs(fractional - reference - np.rint(fractional - reference))
    if off.max() <= TOLERANCE:
        return ""
    twelfths = 12 * reference[off > TOLERANCE]
    if off.max() < SNAPPED and np.abs(twelfths - np.rint(twelfths)).max() < 1e-6:
        return ROUNDED
    return f"fractional coordinates off by {off.max():.1e}"


if __name__ == "__main__":
    main()
