"""Tables of random graphs, for tests of batching, loading and training.

They have the invariants of real ones (edges sorted by dst, every shape of structure from a lone
atom without edges on), and arbitrary geometry: what is tested here is arithmetic on arrays.
"""

from __future__ import annotations

import numpy as np

from atomloom.graphs.graph import GraphTable


def random_table(
    structures: int,
    seed: int = 0,
    *,
    atoms: tuple[int, int] = (1, 8),
    edges_per_atom: int = 6,
    listed: bool = True,
    triplets: bool = False,
    isolated: bool = True,
) -> GraphTable:
    """`structures` random graphs of `atoms` atoms; with isolated atoms among them if wanted."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(atoms[0], atoms[1] + 1, size=structures)
    node_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(node_ptr[-1])
    degree = np.full(total, edges_per_atom)
    if isolated:
        degree[rng.random(total) < 0.1] = 0
    owner = np.repeat(np.arange(structures), counts)
    dst_all = np.repeat(np.arange(total), degree)
    edges = len(dst_all)
    edge_graph = owner[dst_all]
    edge_ptr = np.searchsorted(edge_graph, np.arange(structures + 1)).astype(np.int64)
    src = (rng.random(edges) * counts[edge_graph]).astype(np.uint16)
    pairs, triplet_ptr = [], [0]
    for s in range(structures) if triplets else ():
        count = edge_ptr[s + 1] - edge_ptr[s]
        drawn = rng.integers(0, max(count, 1), size=(2 * count, 2))
        drawn = np.sort(drawn, axis=1)
        pairs.append(drawn[drawn[:, 0] < drawn[:, 1]].astype(np.uint32))
        triplet_ptr.append(triplet_ptr[-1] + len(pairs[-1]))
    return GraphTable(
        hash=rng.integers(0, 256, size=(structures, 32)).astype(np.uint8),
        node_ptr=node_ptr,
        edge_ptr=edge_ptr,
        numbers=rng.choice([1, 6, 8, 14, 22], size=total).astype(np.uint8),
        positions=rng.normal(scale=3.0, size=(total, 3)),
        cell=rng.normal(size=(structures, 3, 3)) + 5.0 * np.eye(3),
        pbc=np.ones((structures, 3), dtype=bool),
        src=src,
        dst=(dst_all - node_ptr[edge_graph]).astype(np.uint16),
        shift=rng.integers(-2, 3, size=(edges, 3)).astype(np.int8),
        listed=rng.integers(1, 4, size=edges).astype(np.uint8) if listed else None,
        lattice=rng.normal(size=(structures, 3, 3)) + 5.0 * np.eye(3),
        triplet_ptr=np.array(triplet_ptr, dtype=np.int64) if triplets else None,
        triplet=np.concatenate(pairs) if triplets else None,
    )
