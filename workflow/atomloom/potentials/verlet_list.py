"""VerletList: neighbour graphs of moving atoms, searched again only when atoms have moved far.

Neighbours are searched within the cutoff and a skin. While no atom can have come in from beyond the
skin, a step recomputes vectors and keeps the edges within the cutoff, in one compiled pass. A deforming
cell moves its atoms, so only motion relative to the deformation counts. The neighbours of each structure
are renewed separately. It knows nothing of potentials or of dynamics.

Legend: S structures, A atoms of all of them, E edges.
"""

from __future__ import annotations

import numpy as np
import torch

from atomloom.compiled import njit
from atomloom.config.graph import GraphSpec
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import GraphTable
from atomloom.graphs.search import triplet_pairs
from atomloom.store.keys import HASH_BYTES
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

REALS = {torch.float32: np.float32, torch.float64: np.float64}


class VerletList:
    """Radius graphs of structures whose atoms and cells move.

    Args:
        spec: the graphs, with `neighbors: radius`.
        node_ptr: [S+1] first atom of each structure.
        numbers: [A] uint8.
        pbc: [S, 3] bool.
        skin: A; 0 searches again whenever anything has moved.
        dtype: precision of the batches.
        device: of the batches.
    """

    def __init__(
        self,
        spec: GraphSpec,
        node_ptr: np.ndarray,
        numbers: np.ndarray,
        pbc: np.ndarray,
        skin: float,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        if not skin >= 0:
            raise AtomloomError(f"a skin of {skin} A", where="skin", todo="give 0 or more")
        self.spec, self.skin, self.dtype, self.device = spec, float(skin), dtype, device
        self.node_ptr = np.ascontiguousarray(node_ptr, dtype=np.int64)
        self.numbers = np.ascontiguousarray(numbers, dtype=np.uint8)
        self.pbc = np.ascontiguousarray(pbc, dtype=bool).reshape(-1, 3)
        self.searches = np.zeros(len(self), dtype=np.int64)
        """[S] number of neighbour searches of each structure."""
        self._wide = spec.model_copy(
            update={"cutoff": spec.cutoff + self.skin, "triplets": None, "lattice": False}
        )
        self._graphs: GraphTable | None = None
        structure = np.repeat(np.arange(len(self)), np.diff(self.node_ptr))
        self._of_atoms = [
            torch.from_numpy(array).to(device)
            for array in (self.numbers.astype(np.int64), structure, self.node_ptr)
        ]
        self._rows = torch.arange(len(self), device=device)

    def __len__(self) -> int:
        return len(self.node_ptr) - 1

    def batch(self, positions: np.ndarray, cell: np.ndarray) -> GraphBatch:
        """Current state of all structures as one batch with edge vectors.

        Args:
            positions: [A, 3] float64, A; wrapped or not.
            cell: [S, 3, 3] float64, A.

        Raises:
            AtomloomError: when a coordinate is not finite, or a cell has collapsed.
        """
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        cell = np.ascontiguousarray(cell, dtype=np.float64).reshape(-1, 3, 3)
        worn = np.flatnonzero(self._worn(positions, cell))
        if len(worn):
            self._search(worn, positions, cell)
        return self._cut(positions, cell)

    def _worn(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """[S] bool, whether an atom from beyond the skin may have come within the cutoff."""
        if self._graphs is None:
            return np.ones(len(self), dtype=bool)
        deformed = (cell != self._cell).any(axis=(1, 2))
        strain = np.tile(np.eye(3), (len(self), 1, 1))
        most = np.full(len(self), self.skin / 2)
        for row in np.flatnonzero(deformed):
            strain[row], most[row] = self._deformation(cell[row], int(row))
        return _moved(self.node_ptr, positions, self._graphs.positions, strain, most)

    def _deformation(self, cell: np.ndarray, row: int) -> tuple[np.ndarray, float]:
        """Deformation F with cell = cell then @ F, and how far atoms may move relative to it.

        A vector that is r now was r0 = (r - du) F^-1 then, so that |r0| is at most
        (cutoff + 2 u) |F^-1|; the list holds all up to cutoff + skin.
        """
        pbc = self.pbc[row]
        try:
            strain = np.linalg.solve(_frame(self._cell[row], pbc), _frame(cell, pbc))
            stretch = float(np.linalg.norm(np.linalg.inv(strain), 2))
        except np.linalg.LinAlgError:
            return np.eye(3), -1.0  # let the search report the error in the cell
        return strain, ((self.spec.cutoff + self.skin) / stretch - self.spec.cutoff) / 2

    def _search(self, rows: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> None:
        """Search the neighbours of some structures again."""
        found = []
        for row in rows:
            atoms = slice(self.node_ptr[row], self.node_ptr[row + 1])
            # The constructor checks for input that would break the compiled search.
            found.append(
                Structure(self.numbers[atoms], positions[atoms].copy(), cell[row], self.pbc[row])
            )
        counts = [len(structure) for structure in found]
        table = StructureTable(
            hash=np.zeros((len(found), HASH_BYTES), dtype=np.uint8),
            node_ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            numbers=np.concatenate([s.numbers for s in found]),
            positions=np.concatenate([s.positions for s in found]),
            cell=np.stack([s.cell for s in found]),
            pbc=np.stack([s.pbc for s in found]),
        )
        new = build_graphs(table, self._wide)
        if self._graphs is not None and len(rows) < len(self):
            order = np.arange(len(self))
            order[rows] = len(self) + np.arange(len(rows))
            new = GraphTable.concatenate([self._graphs, new]).take(order)
        self.searches[rows] += 1
        self._graphs = new
        self._cell = new.cell
        first = np.repeat(self.node_ptr[:-1], np.diff(new.edge_ptr)).astype(np.int32)
        self._edges = (
            new.src.astype(np.int32) + first,
            new.dst.astype(np.int32) + first,
            new.shift.astype(np.int16),
        )
        most = len(new.src)
        self._structure_of_edge = np.repeat(
            np.arange(len(self), dtype=np.int32), np.diff(new.edge_ptr)
        )
        self._most = most

    def _cut(self, positions: np.ndarray, cell: np.ndarray) -> GraphBatch:
        """Edges currently within the cutoff."""
        real = REALS[self.dtype]
        most, atoms = self._most, len(self.numbers)
        # New memory each time: earlier batches, and autograd, may still hold the last one's.
        src, dst = np.empty(most, np.int64), np.empty(most, np.int64)
        shift, vectors = np.empty((most, 3), real), np.empty((most, 3), real)
        length = np.empty(most if self.spec.triplets is not None else 0)
        dst_ptr = np.empty(atoms + 1, np.int64)
        count = _within(
            *self._edges, self._structure_of_edge, positions, cell, float(self.spec.cutoff) ** 2,
            src, dst, shift, vectors, length, dst_ptr,
        )  # fmt: skip
        triplets = None
        if self.spec.triplets is not None:
            _, pairs = triplet_pairs(
                np.array([0, count]), dst[:count].astype(np.int32), length, self.spec.triplets
            )
            triplets = self._sent(pairs.astype(np.int64))
        numbers, node_graph, node_ptr = self._of_atoms
        return GraphBatch(
            numbers=numbers,
            positions=self._sent(positions.astype(real)),
            cell=self._sent(cell.astype(real)),
            node_graph=node_graph,
            node_ptr=node_ptr,
            src=self._sent(src[:count]),
            dst=self._sent(dst[:count]),
            dst_ptr=self._sent(dst_ptr),
            shift=self._sent(shift[:count]),
            vectors=self._sent(vectors[:count]),
            triplets=triplets,
            rows=self._rows,
        )

    def _sent(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def _frame(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """[3, 3] periodic vectors, and unit vectors normal to them for the other directions."""
    if pbc.all():
        return cell
    frame = np.eye(3)
    if pbc.any():
        frame[pbc] = cell[pbc]
        frame[~pbc] = np.linalg.svd(cell[pbc])[2][pbc.sum() :]
    return frame


@njit(nogil=True, cache=True)
def _moved(
    node_ptr: np.ndarray,
    positions: np.ndarray,
    then: np.ndarray,
    strain: np.ndarray,
    most: np.ndarray,
) -> np.ndarray:
    """[S] bool, whether some atom moved farther, relative to the strain of its cell, than allowed."""
    worn = np.zeros(len(node_ptr) - 1, np.bool_)
    for s in range(len(worn)):
        squared = most[s] * most[s]
        f = strain[s]
        worn[s] = most[s] < 0.0
        for i in range(node_ptr[s], node_ptr[s + 1]):
            if worn[s]:
                break
            x, y, z = then[i, 0], then[i, 1], then[i, 2]
            u = positions[i, 0] - (x * f[0, 0] + y * f[1, 0] + z * f[2, 0])
            v = positions[i, 1] - (x * f[0, 1] + y * f[1, 1] + z * f[2, 1])
            w = positions[i, 2] - (x * f[0, 2] + y * f[1, 2] + z * f[2, 2])
            worn[s] = not u * u + v * v + w * w <= squared  # NaN counts as far
    return worn


@njit(nogil=True, cache=True, error_model="numpy")
def _within(
    src: np.ndarray,
    dst: np.ndarray,
    shift: np.ndarray,
    structure: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    cutoff2: float,
    out_src: np.ndarray,
    out_dst: np.ndarray,
    out_shift: np.ndarray,
    out_vectors: np.ndarray,
    out_length: np.ndarray,
    out_ptr: np.ndarray,
) -> int:
    """Copy the edges no longer than the cutoff; returns how many."""
    count = 0
    center = 0
    out_ptr[0] = 0
    for e in range(len(src)):
        i, j = dst[e], src[e]
        c = cell[structure[e]]
        a, b, d = float(shift[e, 0]), float(shift[e, 1]), float(shift[e, 2])
        # In the order of operations of `Graph.vectors`.
        x = positions[j, 0] + (a * c[0, 0] + b * c[1, 0] + d * c[2, 0]) - positions[i, 0]
        y = positions[j, 1] + (a * c[0, 1] + b * c[1, 1] + d * c[2, 1]) - positions[i, 1]
        z = positions[j, 2] + (a * c[0, 2] + b * c[1, 2] + d * c[2, 2]) - positions[i, 2]
        squared = x * x + y * y + z * z
        if squared > cutoff2:
            continue
        while center < i:
            center += 1
            out_ptr[center] = count
        out_src[count], out_dst[count] = j, i
        out_shift[count, 0], out_shift[count, 1], out_shift[count, 2] = a, b, d
        out_vectors[count, 0], out_vectors[count, 1], out_vectors[count, 2] = x, y, z
        if len(out_length):
            out_length[count] = np.sqrt(squared)
        count += 1
    for atom in range(center + 1, len(out_ptr)):
        out_ptr[atom] = count
    return count
