"""VerletList: at every step the graph that a fresh search would find, for far fewer searches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from atomloom.config.graph import GraphSpec
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.potentials.evaluation import plain_structure, structure_table
from atomloom.potentials.verlet_list import VerletList

SPEC = GraphSpec(neighbors="radius", cutoff=4.0)


def skin_of(structures, skin, spec=SPEC):
    return VerletList(
        spec,
        np.cumsum([0, *(len(s) for s in structures)]),
        np.concatenate([s.numbers for s in structures]),
        np.stack([s.pbc for s in structures]),
        skin,
        torch.float64,
    )


def batch_of(graphs, structures):
    return graphs.batch(
        np.concatenate([s.positions for s in structures]),
        np.stack([s.cell.array for s in structures]),
    )


def fresh(structures, spec=SPEC):
    table = build_graphs(structure_table([plain_structure(s) for s in structures]), spec)
    rows = np.arange(len(table))
    return GraphLoader(table, rows, dtype=torch.float64).slice(rows)


def edges(batch):
    """Each edge with its vector, in an order of its own."""
    rows = np.column_stack(
        [batch.dst, batch.src, batch.shift.numpy().astype(int), batch.vectors.numpy()]
    )
    return rows[np.lexsort(rows[:, 4::-1].T)]


def assert_same(found, wanted):
    assert np.allclose(edges(found), edges(wanted), rtol=0, atol=1e-12)
    for name in ("numbers", "node_graph", "node_ptr", "dst_ptr", "positions", "cell", "rows"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert torch.all(found.dst.diff() >= 0)


def zoo() -> list[Atoms]:
    """Three, two, one and no periodic directions; a cell smaller than the cutoff; a lone atom."""
    wire = Atoms("Cu2", [[0, 0, 0], [0.5, 0.2, 1.8]], cell=[0, 0, 3.6], pbc=[False, False, True])
    return [
        bulk("Cu", cubic=True) * (2, 1, 1),
        bulk("Cu"),
        fcc111("Cu", (2, 2, 2), vacuum=3.0, periodic=False),
        fcc111("Cu", (2, 2, 2), vacuum=None),
        wire,
        molecule("CH3CH2OH"),
        Atoms("Cu"),
    ]


def test_the_zoo_has_every_periodicity():
    assert {sum(s.pbc.tolist()) for s in zoo()} == {0, 1, 2, 3}


@pytest.mark.parametrize("skin", [0.0, 0.6])
def test_graphs_of_moving_atoms_are_those_of_a_fresh_search(skin):
    structures = zoo()
    graphs = skin_of(structures, skin)
    draw = np.random.default_rng(0)
    for _ in range(25):
        assert_same(batch_of(graphs, structures), fresh(structures))
        for structure in structures:
            structure.positions += draw.normal(scale=0.04, size=structure.positions.shape)
    if skin:
        assert graphs.searches.max() < 15
    else:
        assert graphs.searches.min() == 25


def test_nothing_is_searched_again_while_nothing_moves_far():
    structures = zoo()
    graphs = skin_of(structures, 0.5)
    batch_of(graphs, structures)
    for structure in structures:
        structure.positions += [0.1, -0.1, 0.2]  # 0.245 A, just within half the skin
        structure.positions[0] -= 0.01
    assert_same(batch_of(graphs, structures), fresh(structures))
    assert graphs.searches.tolist() == [1] * len(structures)


def test_only_what_has_moved_far_is_searched_again():
    structures = zoo()
    graphs = skin_of(structures, 0.5)
    batch_of(graphs, structures)
    structures[2].positions[1, 0] += 0.3
    structures[5].positions[1, 0] += 0.3
    assert_same(batch_of(graphs, structures), fresh(structures))
    assert graphs.searches.tolist() == [1, 1, 2, 1, 1, 2, 1]


def test_atoms_wrapped_into_the_cell_give_the_same_graph():
    crystal = bulk("Cu", cubic=True) * (2, 2, 1)
    crystal.positions -= 0.2
    graphs = skin_of([crystal], 0.5)
    before = batch_of(graphs, [crystal]).vectors.norm(dim=1).sort().values
    crystal.wrap()
    after = batch_of(graphs, [crystal])
    assert torch.allclose(before, after.vectors.norm(dim=1).sort().values, atol=1e-12)
    assert_same(after, fresh([crystal]))


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([0.002, 0.02, 0.1]))
def test_deforming_cells_give_the_graph_of_a_fresh_search(seed, size):
    """As a barostat or a relaxation of the cell moves them: atoms with the cell, and beside it."""
    draw = np.random.default_rng(seed)
    structures = [s for s in zoo() if s.pbc.any()]
    graphs = skin_of(structures, 0.8)
    for _ in range(6):
        assert_same(batch_of(graphs, structures), fresh(structures))
        for structure in structures:
            strain = np.eye(3) + draw.normal(scale=size / 3, size=(3, 3))
            structure.set_cell(structure.cell.array @ strain, scale_atoms=structure.cell.rank == 3)
            structure.positions += draw.normal(scale=0.02, size=structure.positions.shape)


def test_a_small_strain_needs_no_search():
    crystal = bulk("Cu", cubic=True) * (3, 3, 3)
    graphs = skin_of([crystal], 0.8)
    batch_of(graphs, [crystal])
    # Every atom but that at the origin moves, the farthest by more than half the skin.
    crystal.set_cell(crystal.cell.array * 1.05, scale_atoms=True)
    assert_same(batch_of(graphs, [crystal]), fresh([crystal]))
    assert graphs.searches.tolist() == [1]
    crystal.set_cell(crystal.cell.array * 0.7, scale_atoms=True)
    assert_same(batch_of(graphs, [crystal]), fresh([crystal]))
    assert graphs.searches.tolist() == [2]


def test_triplets_are_those_within_the_cutoff():
    spec = GraphSpec(neighbors="radius", cutoff=4.0, triplets=3.0)
    structures = [bulk("Cu", cubic=True), molecule("CH3CH2OH")]
    graphs = skin_of(structures, 0.5, spec)
    draw = np.random.default_rng(0)
    for _ in range(4):
        found, wanted = batch_of(graphs, structures), fresh(structures, spec)

        def angles(batch):
            a, b = (batch.vectors[batch.triplets[:, k]] for k in (0, 1))
            assert torch.equal(batch.dst[batch.triplets[:, 0]], batch.dst[batch.triplets[:, 1]])
            return torch.nn.functional.cosine_similarity(a, b).sort().values

        assert len(found.triplets) == len(wanted.triplets) > 0
        assert torch.allclose(angles(found), angles(wanted), atol=1e-12)
        for structure in structures:
            structure.positions += draw.normal(scale=0.03, size=structure.positions.shape)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_coordinates_that_are_no_numbers_are_refused(bad):
    crystal = bulk("Cu", cubic=True)
    graphs = skin_of([crystal], 0.5)
    batch_of(graphs, [crystal])
    crystal.positions[2, 1] = bad
    with pytest.raises(AtomloomError, match="coordinate of atom 2 is not a finite number"):
        batch_of(graphs, [crystal])


def test_a_cell_that_collapses_is_refused():
    crystal = bulk("Cu", cubic=True)
    graphs = skin_of([crystal], 0.5)
    batch_of(graphs, [crystal])
    cell = crystal.cell.array.copy()
    cell[2] = cell[1]
    with pytest.raises(AtomloomError, match="linearly dependent"):
        graphs.batch(crystal.positions, cell[None])
