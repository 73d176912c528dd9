"""Batches for the tests of models: from reference graphs, and from simple crystals."""

from __future__ import annotations

import numpy as np
import torch

from atomloom.data.batch import GraphBatch


def batch_from_graphs(graphs, dtype=torch.float64) -> GraphBatch:
    """Side by side: dicts of numbers, cell, positions, src, dst, vectors, multiplicity, lattice."""
    atoms = [len(graph["numbers"]) for graph in graphs]
    offsets = np.concatenate(([0], np.cumsum(atoms)))

    def joined(key):
        return np.concatenate([graph[key] for graph in graphs])

    def reals(values):
        return torch.tensor(np.asarray(values), dtype=dtype)

    dst = np.concatenate(
        [graph["dst"] + start for graph, start in zip(graphs, offsets, strict=False)]
    )
    src = np.concatenate(
        [graph["src"] + start for graph, start in zip(graphs, offsets, strict=False)]
    )
    assert np.all(np.diff(dst) >= 0)
    positions, cells = joined("positions"), np.stack([graph["cell"] for graph in graphs])
    node_graph = np.repeat(np.arange(len(graphs)), atoms)
    vectors = joined("vectors")
    apart = vectors - positions[src] + positions[dst]
    shift = np.rint(np.linalg.solve(cells[node_graph[dst]].transpose(0, 2, 1), apart[..., None]))
    degree = np.bincount(dst, minlength=offsets[-1])
    return GraphBatch(
        numbers=torch.tensor(joined("numbers").astype(np.int64)),
        positions=reals(positions),
        cell=reals(cells),
        node_graph=torch.tensor(node_graph),
        node_ptr=torch.tensor(offsets),
        src=torch.tensor(src),
        dst=torch.tensor(dst),
        dst_ptr=torch.tensor(np.concatenate(([0], np.cumsum(degree)))),
        shift=reals(shift[..., 0]),
        vectors=reals(vectors),
        multiplicity=reals(joined("multiplicity")),
        lattice=reals(np.stack([graph["lattice"] for graph in graphs])),
    )


def oracle_graphs(content) -> list[dict]:
    """The reference graphs, every edge once with its multiplicity.

    There, an edge's vector points from the source (row 0) to the target (row 1), which gathers.
    """
    graphs, index = [], 0
    while f"s{index}_numbers" in content:
        part = {
            key: content[f"s{index}_{key}"]
            for key in ("numbers", "cell", "positions", "edge_index", "edge_vector")
        }
        src, dst = part["edge_index"]
        vectors = -part["edge_vector"]
        shift = np.linalg.solve(
            part["cell"].T, (vectors - part["positions"][src] + part["positions"][dst]).T
        ).T
        keys = np.column_stack((dst, src, np.rint(shift).astype(np.int64)))
        _, first, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
        graphs.append(
            {
                "numbers": part["numbers"],
                "cell": part["cell"],
                "positions": part["positions"],
                "src": src[first],
                "dst": dst[first],
                "vectors": vectors[first],
                "multiplicity": counts,
                "lattice": content.get(f"s{index}_lattice_triad", np.zeros((3, 3))),
            }
        )
        index += 1
    return graphs


def cubic(number: int = 29, length: float = 3.6, shells: int = 1) -> dict:
    """One atom in a simple cubic cell, with the images in the nearest cells."""
    cell = np.eye(3) * length
    offsets = np.stack(np.meshgrid(*[np.arange(-shells, shells + 1)] * 3), axis=-1).reshape(-1, 3)
    vectors = offsets[np.any(offsets != 0, axis=1)] @ cell
    edges = len(vectors)
    return {
        "numbers": np.array([number]),
        "cell": cell,
        "positions": np.zeros((1, 3)),
        "src": np.zeros(edges, dtype=np.int64),
        "dst": np.zeros(edges, dtype=np.int64),
        "vectors": vectors,
        "multiplicity": np.full(edges, 2),
        "lattice": cell,
    }


def random_crystal(rng: np.random.Generator, atoms: int, edges_per_atom: int = 8) -> dict:
    """Random atoms; a symmetric random graph among their images, multiplicities 1 and 2."""
    cell = np.eye(3) * 5.0 + rng.normal(scale=0.4, size=(3, 3))
    positions = rng.uniform(size=(atoms, 3)) @ cell
    half = atoms * edges_per_atom // 2
    keys = np.column_stack(
        (
            rng.integers(atoms, size=half),
            rng.integers(atoms, size=half),
            rng.integers(-1, 2, size=(half, 3)),
        )
    )
    keys = keys[(keys[:, 0] != keys[:, 1]) | np.any(keys[:, 2:] != 0, axis=1)]
    keys = np.concatenate((keys, np.column_stack((keys[:, 1], keys[:, 0], -keys[:, 2:]))))
    keys, counts = np.unique(keys, axis=0, return_counts=True)
    dst, src, shift = keys[:, 0], keys[:, 1], keys[:, 2:]
    return {
        "numbers": rng.choice([1, 6, 8, 14, 22, 38, 56, 82], size=atoms),
        "cell": cell,
        "positions": positions,
        "src": src,
        "dst": dst,
        "vectors": positions[src] + shift @ cell - positions[dst],
        "multiplicity": np.minimum(counts, 2),
        "lattice": cell,
    }
