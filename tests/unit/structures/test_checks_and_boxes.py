"""Quarantine checks against brute force, and fake boxes around molecules."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomloom.config import Checks
from atomloom.errors import AtomloomError
from atomloom.structures import Structure
from atomloom.structures.checks import check_structure, closest_pair
from atomloom.structures.vacuum import without_fake_box


def structure(numbers, positions, cell=None, pbc=True, **properties):
    cell = np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=float)
    return Structure(
        np.asarray(numbers),
        np.asarray(positions, dtype=float),
        cell,
        np.broadcast_to(pbc, 3),
        properties,
    )


def brute_force(s: Structure, images: int = 5) -> float:
    """Least distance over all pairs and images, each atom's own included."""
    span = [range(-images, images + 1) if periodic else (0,) for periodic in s.pbc]
    shifts = np.array(list(itertools.product(*span))) @ s.cell
    apart = s.positions[:, None, None] - s.positions[None, :, None] + shifts[None, None]
    distances = np.linalg.norm(apart, axis=-1)
    distances[np.arange(len(s)), np.arange(len(s)), len(shifts) // 2] = np.inf
    return float(distances.min())


@pytest.mark.parametrize("tiny", [1e-320, 1e-200, 1e-6, 1e-3])
@pytest.mark.parametrize("pbc", [(True, True, True), (False, True, True), (False, True, False)])
def test_a_cell_thinner_than_anything_is_refused_at_once(tiny, pbc):
    cell = np.array([[4.0, 0, 0], [0, tiny, 0], [0.5, 0, 6.0]])
    atoms = [[0, 0, 0], [1, 2, 3], [2.5, 0.5, 1]] * 10
    try:
        made = structure([1] * 30, atoms, cell, pbc)
    except AtomloomError:
        return  # where even the constructor sees no span
    start = time.process_time()
    with pytest.raises(AtomloomError, match="own periodic image"):
        check_structure(made, Checks(max_volume_per_atom=1e9))
    assert time.process_time() - start < 5


def test_a_thin_skewed_cell_of_a_roomy_lattice_passes_as_its_compact_cell_does():
    """(1, 0, 0) and (1000, 0.5, 0) span the plane lattice of (1, 0) and (0, 0.5): no vector is short."""
    compact = np.array([[3.0, 0, 0], [0, 2.0, 0], [0, 0, 5.0]])
    skewed = np.array([[1, 0, 0], [700, 1, 0], [0, 900, 1]]) @ compact
    rng = np.random.default_rng(0)
    atoms = [[0.1, 0.2, 0.3], [1.5, 0.5, 0.6]]  # 1.46 A apart
    for within in (1.0, 1.9):
        expected = closest_pair(structure([1, 2], atoms, compact), within)
        moved = np.array(atoms) + rng.integers(-3, 4, (2, 3)) @ skewed
        found = closest_pair(structure([1, 2], moved, skewed), within)
        assert found[:2] == expected[:2]
        assert found[2] == pytest.approx(expected[2], abs=1e-6)


@settings(max_examples=150)
@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([0.4, 1.0, 2.5]),
)
def test_the_closest_pair_is_that_of_brute_force(seed, count, pbc, within):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(1.5, 12, 3)) + rng.normal(0, 0.8, (3, 3))
    heights = abs(np.linalg.det(cell)) / np.linalg.norm(
        np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1
    )
    if heights.min() < 0.6:
        return
    # wrapped, so that a few images suffice for brute force, then moved by lattice vectors at random
    fractions = rng.random((count, 3))
    wrapped = structure(rng.integers(1, 90, count), fractions @ cell, cell, pbc)
    moved = fractions + rng.integers(-3, 4, (count, 3)) * np.array(pbc)
    first, second, distance = closest_pair(
        structure(wrapped.numbers, moved @ cell, cell, pbc), within
    )
    expected = brute_force(wrapped)
    if expected >= within:
        assert (first, second) == (-1, -1)
        return
    assert distance == pytest.approx(expected, abs=1e-9)
    assert 0 <= first <= second < count


def test_in_a_sheared_cell_the_closest_image_is_found_in_any_direction():
    """There it is often not the one with the smallest fractions: of 12 in 100 pairs here."""
    rng = np.random.default_rng(0)
    for _ in range(400):
        shear = np.array([[1, 0, 0], [2, 1, 0], [rng.integers(-2, 3), 2, 1]])
        order = rng.permutation(3)  # so that every direction is the sheared one
        cell = (shear @ (np.diag(rng.uniform(2, 5, 3)) + rng.normal(0, 0.8, (3, 3))))[order]
        heights = abs(np.linalg.det(cell)) / np.linalg.norm(
            np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1
        )
        if heights.min() < 0.6:
            continue
        made = structure([1, 2], rng.random((2, 3)) @ cell, cell)
        expected = brute_force(made)
        distance = closest_pair(made, 2.5)[2]
        assert distance == (pytest.approx(expected, abs=1e-9) if expected < 2.5 else np.inf)


def test_overlaps_are_named():
    cell = np.eye(3) * 5
    with pytest.raises(AtomloomError, match=r"atoms 1 and 2 are 0\.12 A apart"):
        check_structure(
            structure([1, 8, 8], [[0, 0, 0], [2, 2, 4.96], [2, 2, 0.08]], cell), Checks()
        )
    with pytest.raises(AtomloomError, match=r"atom 0 is 0\.3 A from its own periodic image"):
        check_structure(structure([8], [[0, 0, 0]], np.diag([5, 5, 0.3])), Checks())
    check_structure(structure([1, 8], [[0, 0, 0], [0, 0, 0.1]], cell), Checks(min_distance=0))
    check_structure(structure([1, 1], [[0, 0, 0], [0, 0, 0.7414]], pbc=False), Checks())


def test_a_slab_is_not_periodic_across_its_vacuum():
    cell = np.diag([3.0, 3.0, 1.0])
    atoms = [[0, 0, 0], [0, 0, 1.1]]
    check_structure(structure([8, 8], atoms, cell, (True, True, False)), Checks())
    with pytest.raises(AtomloomError, match=r"0\.1 A apart"):
        check_structure(structure([8, 8], atoms, cell), Checks())


def test_an_empty_cell_is_refused_and_a_molecule_has_none():
    with pytest.raises(
        AtomloomError, match=r"a volume of 125000 A\^3 per atom, more than 10000.*box: molecule"
    ):
        check_structure(structure([1], [[0, 0, 0]], np.eye(3) * 50), Checks())
    check_structure(structure([1], [[0, 0, 0]], pbc=False), Checks())


WATER = np.array([[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]])


@pytest.mark.parametrize("centre", [(0, 0, 0), (25, 25, 25), (49.9, 0.2, 30), (0, 50, 50)])
@pytest.mark.parametrize("wrap", [True, False])
def test_a_molecule_in_a_box_is_taken_out_of_it_in_one_piece(centre, wrap):
    cell = np.array([[50.0, 0, 0], [5, 50, 0], [0, -5, 50]])
    positions = WATER + centre
    if wrap:
        fractions = positions @ np.linalg.inv(cell)
        positions = (fractions - np.floor(fractions)) @ cell
    boxed = structure([8, 1, 1], positions, cell, energy=-1.0, stress=np.eye(3))
    free = without_fake_box(boxed)
    assert not free.pbc.any()
    assert not free.cell.any()
    assert free.properties == {"energy": -1.0}
    np.testing.assert_allclose(free.positions - free.positions[0], WATER - WATER[0], atol=1e-12)
    np.testing.assert_array_equal(free.positions[0], positions[0])


@pytest.mark.parametrize("height", [11.2, 8.0])
def test_a_box_with_less_vacuum_than_ten_angstrom_is_kept(height):
    boxed = structure([8, 1, 1], WATER, np.diag([50, 50, height]))
    assert without_fake_box(boxed).pbc.any() == (height < 10.6)
    crystal = structure([11, 17], [[0, 0, 0], [2.8, 0, 0]], np.eye(3) * 5.6)
    assert without_fake_box(crystal) is crystal


def test_a_box_without_periodicity_is_dropped_and_a_slab_is_kept():
    assert not without_fake_box(structure([8], [[0, 0, 0]], np.eye(3) * 5, False)).cell.any()
    slab = structure([8], [[0, 0, 0]], np.diag([3, 3, 40.0]), (True, True, False))
    assert without_fake_box(slab) is slab
