"""Are our graphs those of ASE and jarvis-tools? Edge by edge, on real crystals.

    python -m benchmarks.agreement.graph_agreement [--only alignn_sample | mp36k] [--most N]

Every structure of alignn_sample and a seeded sample of mp36k. Radius graphs alongside
ase.neighborlist.neighbor_list, k-nearest graphs (8 A, k = 12) alongside jarvis-tools'
nearest_neighbor_edges. Edges are compared as whole numbers (source, target, cell of the source's
image), so an edge is the same or it is not. An edge that only one side has is explained when its
length is, to 1e-5 A, that at which its atom's list ends: the cutoff (ASE), or the k-th distance, where
rounding cuts through a shell that we keep whole (jarvis-tools). Anything else is listed as
unexplained. Writes
benchmarks/results/graph_agreement.json.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from atomloom.config.graph import GraphSpec
from atomloom.graphs.build import build_graph
from atomloom.graphs.graph import Graph
from atomloom.readers.registry import parse_record
from atomloom.readers.sources import enumerate_records
from atomloom.structures import to_ase
from atomloom.structures.elements import SYMBOLS
from atomloom.structures.structure import Structure
from benchmarks.common.results import Parser, data_path, read_result, write_result

RADII = (5.0, 8.0)
KNN = GraphSpec(cutoff=8.0, max_neighbors=12)
TOLERANCE = KNN.shell_tolerance
SAMPLE = 1000
SEED = 36
LISTED = 20

Edge = tuple[int, int, int, int, int]
"""Source, target, and the cell of the source's image."""


@dataclass
class Tally:
    """Number of structures that agree with a peer, and why the others do not."""

    structures: int = 0
    identical: int = 0
    explained: int = 0
    """Structures that differ only in edges as long as their list's last ones."""
    edges: int = 0
    edges_only_here: int = 0
    edges_only_there: int = 0
    unexplained: list[str] = field(default_factory=list)

    def add(self, name: str, only_here: set, only_there: set, edges: int, strange: int) -> None:
        """Count one structure."""
        self.structures += 1
        self.edges += edges
        self.edges_only_here += len(only_here)
        self.edges_only_there += len(only_there)
        if strange:
            self.unexplained.append(f"{name}: {strange} edges")
        elif only_here or only_there:
            self.explained += 1
        else:
            self.identical += 1

    def content(self) -> dict:
        """For JSON."""
        counts = {k: v for k, v in vars(self).items() if k != "unexplained"}
        listed = {"unexplained": len(self.unexplained), "listed": self.unexplained[:LISTED]}
        return counts | listed


def compare_radius(name: str, structure: Structure, radius: float, tally: Tally) -> None:
    """Our radius graph alongside ASE's neighbour list."""
    from ase.neighborlist import neighbor_list

    graph = build_graph(structure, GraphSpec(neighbors="radius", cutoff=radius))
    ours = edges_of(graph)
    target, source, shift = neighbor_list("ijS", to_ase(structure), radius)
    theirs = set(map(tuple, np.column_stack([source, target, shift]).tolist()))
    odd = lengths(structure, ours ^ theirs)
    strange = int((np.abs(odd - radius) > TOLERANCE).sum())
    tally.add(name, ours - theirs, theirs - ours, len(ours), strange)


def compare_nearest(name: str, structure: Structure, tally: Tally) -> None:
    """Our k-nearest graph alongside that of jarvis-tools, both with both directions of each edge."""
    from jarvis.core.atoms import Atoms
    from jarvis.core.graphs import nearest_neighbor_edges

    atoms = Atoms(
        lattice_mat=structure.cell,
        coords=structure.positions,
        elements=[SYMBOLS[number] for number in structure.numbers.tolist()],
        cartesian=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = nearest_neighbor_edges(atoms, KNN.cutoff, KNN.max_neighbors, use_canonize=True)
    theirs: set[Edge] = set()
    for (first, second), images in found.items():
        for image in images:
            cell = tuple(int(n) for n in image)
            theirs.add((int(second), int(first), *cell))
            theirs.add((int(first), int(second), *(-n for n in cell)))
    graph = build_graph(structure, KNN)
    ours = edges_of(graph)
    ends = kth_distances(graph)
    odd = sorted(ours ^ theirs)
    long = lengths(structure, odd)
    atoms_of = np.array([edge[:2] for edge in odd], dtype=int).reshape(-1, 2)
    off = np.abs(ends[atoms_of] - long[:, None]).min(axis=1) if odd else np.zeros(0)
    tally.add(name, ours - theirs, theirs - ours, len(ours), int((off > TOLERANCE).sum()))


def edges_of(graph: Graph) -> set[Edge]:
    """Edges as whole numbers."""
    return set(map(tuple, np.column_stack([graph.src, graph.dst, graph.shift]).tolist()))


def lengths(structure: Structure, edges: set[Edge] | list[Edge]) -> np.ndarray:
    """Lengths (A) of edges given as whole numbers."""
    table = np.array(sorted(edges), dtype=np.int64).reshape(-1, 5)
    r = structure.positions[table[:, 0]] - structure.positions[table[:, 1]]
    return np.linalg.norm(r + table[:, 2:] @ structure.cell, axis=1)


def kth_distances(graph: Graph) -> np.ndarray:
    """[N] distance of each atom's k-th neighbour, from what is listed as near it."""
    own = graph.listed & 1 > 0
    order = np.lexsort([graph.distances[own], graph.dst[own]])
    target, far = graph.dst[own][order].astype(int), graph.distances[own][order]
    first = np.searchsorted(target, np.arange(len(graph.numbers)))
    return far[first + KNN.max_neighbors - 1]


def inside(structure: Structure) -> Structure:
    """With all atoms in the cell, where jarvis-tools wants them to count images as we do."""
    fractions = np.linalg.solve(structure.cell.T, structure.positions.T).T % 1.0 % 1.0
    return replace(structure, positions=fractions @ structure.cell)


def alignn_sample() -> Iterator[tuple[str, Structure]]:
    """All POSCARs of ALIGNN's example."""
    for record in enumerate_records([data_path("alignn_sample/sample_data.tar.gz")]):
        if record.format == "poscar":
            yield record.id, parse_record(record.format, record.payload or b"", record.id)


def mp36k() -> Iterator[tuple[str, Structure]]:
    """A seeded sample of the CIFs of mp36k."""
    records = list(enumerate_records([data_path("mp36k_crysxpp/cif.tar.xz")]))
    chosen = np.random.default_rng(SEED).choice(len(records), SAMPLE, replace=False)
    for number in sorted(chosen):
        record = records[number]
        yield record.id, parse_record(record.format, record.payload or b"", record.id)


SETS = {"alignn_sample": alignn_sample, "mp36k": mp36k}


def agreement(name: str, most: int | None = None) -> dict:
    """Tallies of one data set, by peer."""
    tallies = {f"ase, radius {radius:g} A": Tally() for radius in RADII}
    tallies["jarvis-tools, k = 12"] = Tally()
    for number, (id, structure) in enumerate(SETS[name]()):
        if number == most:
            break
        for radius in RADII:
            compare_radius(id, structure, radius, tallies[f"ase, radius {radius:g} A"])
        compare_nearest(id, inside(structure), tallies["jarvis-tools, k = 12"])
    return {peer: tally.content() for peer, tally in tallies.items()}


def main() -> None:
    """Compare, print, write the result."""
    parser = Parser(__doc__, parts=list(SETS))
    parser.add_argument("--most", type=int, help="stop after so many structures of a set")
    options = parser.parse_args()
    content = read_result("graph_agreement")
    strange = total = 0
    for name in [options.only] if options.only else SETS:
        content[name] = agreement(name, options.most)
        for peer, tally in content[name].items():
            print(
                f"{name:<14} {peer:<22}{tally['structures']:>6,} structures {tally['identical']:>6,} "
                f"identical {tally['explained']:>5,} explained {tally['unexplained']:>4,} not; "
                f"edges {tally['edges']:>9,}, only here {tally['edges_only_here']:,}, only there "
                f"{tally['edges_only_there']:,}",
                flush=True,
            )
            strange += tally["unexplained"]
            total += tally["structures"]
    if options.write:
        write_result("graph_agreement", content)
    print(f"{total:,} comparisons with ASE and jarvis-tools, {strange} of them unexplained")
    sys.exit(bool(strange))


if __name__ == "__main__":
    main()
