"""The leak guard finds a structure that stands in two splits, however it is written, and no other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import spglib
from ase.build import bulk, fcc111, molecule, nanotube

from atomloom.data.duplicates import find_duplicates
from atomloom.structures import to_structure
from atomloom.structures.composition import reduced_formula
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from tests.unit.structures.crystals import symmetric_crystals

TOLERANCE = 1e-3
NOISE = 1e-4
CRYSTALS = {name: to_structure(crystal) for name, crystal in symmetric_crystals().items()}
SUPERCELL = np.array([[1, 1, 0], [-1, 1, 0], [0, 1, 2]])
SKEWED = np.array([[1, 2, 0], [0, 1, -3], [1, 2, 1]])


@dataclass(frozen=True)
class Chunk:
    table: StructureTable


def found(
    structures: list[Structure],
    splits: list[str],
    tolerance: float = TOLERANCE,
    order: np.ndarray | None = None,
    chunk_size: int = 10**6,
):
    """What the guard says of structures that are known by their place; `order` is that in the data."""
    order = np.arange(len(structures)) if order is None else order
    chunks = [
        Chunk(StructureTable.from_structures([structures[i] for i in order[start:][:chunk_size]]))
        for start in range(0, len(order), chunk_size)
    ]
    frame = pd.DataFrame(
        {
            "record": order + 100,
            "id": [f"s{i}" for i in order],
            "hash": [structures[i].hash for i in order],
            "split": [splits[i] for i in order],
            "formula": [reduced_formula(structures[i].numbers) for i in order],
            "chunk": np.arange(len(order)) // chunk_size,
            "row": np.arange(len(order)) % chunk_size,
        }
    )
    return find_duplicates(chunks, frame, tolerance)


def are_near(one: Structure, other: Structure, tolerance: float = TOLERANCE) -> bool:
    return found([one, other], ["train", "test"], tolerance)["kind"].tolist() == ["near"]


def changed(structure: Structure, ways: str, seed: int = 0) -> Structure:
    """The structure written in other ways, named one after the other."""
    rng = np.random.default_rng(seed)
    numbers, positions, cell = structure.numbers, structure.positions, structure.cell
    for way in ways.split():
        if way == "supercell":
            grid = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3), -1).reshape(-1, 3)
            inside = np.linalg.solve(SUPERCELL.T, grid.T).T
            moves = grid[((inside > -1e-9) & (inside < 1 - 1e-9)).all(axis=1)] @ cell
            positions = (positions + moves[:, None]).reshape(-1, 3)
            numbers, cell = np.tile(numbers, len(moves)), SUPERCELL @ cell
        elif way == "skewed":
            cell = SKEWED @ cell
        elif way == "moved":
            positions = positions + rng.normal(size=3)
        elif way == "unwrapped":
            positions = positions + rng.integers(-2, 3, positions.shape) @ cell
        elif way == "permuted":
            order = rng.permutation(len(numbers))
            numbers, positions = numbers[order], positions[order]
        elif way in ("turned", "mirrored"):
            axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
            axes[:, 0] *= np.sign(np.linalg.det(axes)) * (1 if way == "turned" else -1)
            positions, cell = positions @ axes, cell @ axes
        elif way == "noise":
            positions = positions + rng.normal(scale=NOISE, size=positions.shape)
    return Structure(numbers, positions, cell, structure.pbc)


# --- what is found --------------------------------------------------------------------------------


def test_an_exact_duplicate_is_named_with_its_partner_nearest_to_the_test():
    a, b = CRYSTALS["rock salt"], CRYSTALS["rutile"]
    rows = found([a, b, a, a], ["test", "val", "train", "val"])
    assert rows.drop(columns="record").to_numpy().tolist() == [
        ["s2", "train", "s0", "test", "exact"],
        ["s3", "val", "s0", "test", "exact"],
    ]
    assert rows["record"].tolist() == [102, 103]


EVERYTHING = "supercell skewed moved unwrapped permuted turned noise"


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("ways", [*EVERYTHING.split(), "mirrored", EVERYTHING])
def test_a_crystal_written_in_another_way_is_a_near_duplicate(name, ways):
    crystal = CRYSTALS[name]
    if ways == "permuted" and len(set(crystal.numbers)) == len(crystal):
        crystal = changed(crystal, "supercell")
    assert are_near(crystal, changed(crystal, ways + " noise"))


def test_exact_duplicates_only_are_found_with_a_tolerance_of_0():
    crystal = CRYSTALS["corundum"]
    assert not are_near(crystal, changed(crystal, "moved"), tolerance=0.0)


def test_a_crystal_that_is_a_little_off_its_symmetry_is_found_in_the_one_right_position():
    rng = np.random.default_rng(0)
    crystal = to_structure(bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2))
    off = rng.normal(scale=1e-3, size=(3, *crystal.positions.shape))
    a, b, c = (
        Structure(crystal.numbers, crystal.positions + each, crystal.cell, crystal.pbc)
        for each in off
    )
    ways = "skewed moved unwrapped permuted turned noise"
    rows = found([a, b, changed(a, ways), changed(c, ways)], ["train", "train", "test", "test"])
    assert rows[["id", "other_id"]].to_numpy().tolist() == [["s0", "s2"]]


def slab() -> Structure:
    return to_structure(fcc111("Cu", (2, 2, 3), vacuum=8))


MOLECULES = ("H2O2", "CO2", "CH4", "C6H6", "H")
WIRES = {"nanotube": nanotube(4, 2), "chain": bulk("C", "sc", a=1.3)}


@pytest.mark.parametrize("ways", ["moved permuted turned noise", "mirrored noise"])
@pytest.mark.parametrize("name", [*MOLECULES, "slab", *WIRES])
def test_molecules_slabs_and_wires_are_compared_as_what_they_are(name, ways):
    if name in WIRES:
        atoms = WIRES[name].copy()
        atoms.pbc = [False, False, True]
        structure = to_structure(atoms)
    else:
        structure = slab() if name == "slab" else to_structure(molecule(name))
    assert are_near(structure, changed(structure, ways))


def test_vacuum_counts_only_in_directions_that_are_periodic():
    thin = slab()
    assert thin.pbc.tolist() == [True, True, False]
    higher = thin.cell * [[1], [1], [1.5]]
    assert are_near(thin, Structure(thin.numbers, thin.positions, higher, thin.pbc))
    assert not are_near(
        Structure(thin.numbers, thin.positions, thin.cell, [True] * 3),
        Structure(thin.numbers, thin.positions, higher, [True] * 3),
    )


# --- what is not ----------------------------------------------------------------------------------


def orderings(lattice: Structure, sites: np.ndarray, colours: list[int], count: int, seed: int):
    """Atoms of these elements on the sites at random: structures, and for each its class.

    Two are of one class if a symmetry of the lattice, its cell kept, turns one into the other.
    """
    rng = np.random.default_rng(seed)
    fractions = lattice.positions @ np.linalg.inv(lattice.cell)
    blank = lattice.numbers.copy()
    blank[sites] = 1
    symmetry = spglib.get_symmetry((lattice.cell, fractions, blank), symprec=1e-3)
    images = np.einsum("kij,sj->ksi", symmetry["rotations"], fractions[sites])
    apart = (images + symmetry["translations"][:, None])[:, :, None] - fractions[sites]
    places = np.linalg.norm((apart - np.rint(apart)) @ lattice.cell, axis=-1).argmin(axis=2)
    structures, classes = [], []
    for _ in range(count):
        colour = rng.permutation(colours)
        numbers = lattice.numbers.copy()
        numbers[sites] = colour
        structures.append(Structure(numbers, lattice.positions, lattice.cell, [True] * 3))
        classes.append(min(map(tuple, colour[places])))
    return structures, classes


def assert_only_classes_are_found(structures: list[Structure], classes: list[object]) -> int:
    """Rows are found if and only if one of their class is in a split nearer to the test."""
    rng = np.random.default_rng(0)
    splits = rng.choice(["train", "val", "test"], len(structures), p=[0.6, 0.2, 0.2]).tolist()
    rank = pd.Series(splits).map({"train": 0, "val": 1, "test": 2})
    of_class = pd.factorize(pd.Series(classes, dtype=object))[0]
    wanted = np.flatnonzero(rank < rank.groupby(of_class).transform("max"))
    rows = found(structures, splits)
    assert (rows["record"] - 100).tolist() == wanted.tolist()
    return len(wanted)


def test_orderings_of_an_alloy_are_not_duplicates():
    lattice = to_structure(bulk("Cu", cubic=True, a=3.9) * (2, 2, 2))
    structures, classes = orderings(lattice, np.arange(32), [29] * 16 + [79] * 16, 60, seed=0)
    assert len(set(classes)) == 60
    assert assert_only_classes_are_found(structures, classes) == 0


def test_of_mixed_oxides_only_orderings_that_a_symmetry_turns_into_each_other_are_duplicates():
    corundum = CRYSTALS["corundum"]
    sites = np.flatnonzero(corundum.numbers == 13)
    structures, classes = [], []
    for seed, (al, ga) in enumerate([(6, 3), (4, 4), (8, 2), (2, 9)]):
        colours = [13] * al + [31] * ga + [49] * (12 - al - ga)
        for strain in (0.0, 0.01):  # a few have a somewhat larger cell
            factor = 1 + 0.002 * ga + 0.006 * (12 - al - ga) + strain
            lattice = Structure(
                corundum.numbers, corundum.positions * factor, corundum.cell * factor, [True] * 3
            )
            more, kinds = orderings(lattice, sites, colours, 40 if strain else 80, seed)
            structures += more
            classes += [(factor, kind) for kind in kinds]
    assert assert_only_classes_are_found(structures, classes) > 20


IDEAL = np.sqrt(8 / 3)
POLYTYPES = {
    "metals": (bulk("Cu", "fcc", a=2**0.5), bulk("Cu", "hcp", a=1, c=IDEAL)),
    "semiconductors": (
        bulk("ZnS", "zincblende", a=2**0.5),
        bulk("ZnS", "wurtzite", a=1, c=IDEAL, u=0.375),
    ),
}


@pytest.mark.parametrize("pair", POLYTYPES)
def test_polytypes_with_the_same_first_neighbours_are_not_duplicates(pair):
    for atoms in POLYTYPES[pair]:
        atoms.set_cell(atoms.cell * 3.0, scale_atoms=True)
    assert not are_near(*map(to_structure, POLYTYPES[pair]))


def stacked(layers: str) -> Structure:
    """Close-packed layers A, B and C."""
    cell = 2.5 * np.array([[1, 0, 0], [-0.5, 0.75**0.5, 0], [0, 0, len(layers) * (2 / 3) ** 0.5]])
    place = ["ABC".index(layer) / 3 for layer in layers]
    height = np.arange(len(layers)) / len(layers)
    return Structure(
        [29] * len(layers),
        np.stack([place, np.mod(-np.array(place), 1), height], 1) @ cell,
        cell,
        [True] * 3,
    )


def test_stackings_are_told_apart_however_long():
    """Of six layers: one is the mirror image of the first, one the first begun elsewhere."""
    same = ["ABCACB", "ACBABC", "BCACBA"]
    others = ["ABABAB", "ABCABC", "ABABAC", "ABCBCB"]
    for layers in same[1:]:
        assert are_near(stacked(same[0]), stacked(layers))
    for layers in others:
        assert not are_near(stacked(same[0]), stacked(layers))


def test_a_strained_cell_an_atom_off_its_place_or_a_twin_in_the_same_split_is_none():
    crystal = CRYSTALS["rock salt"]
    strained = Structure(
        crystal.numbers, crystal.positions * 1.001, crystal.cell * 1.001, crystal.pbc
    )
    assert not are_near(crystal, strained)
    large = changed(changed(crystal, "supercell"), "supercell")
    positions = large.positions.copy()
    positions[0, 0] += 0.01
    assert not are_near(large, Structure(large.numbers, positions, large.cell, large.pbc))
    assert found([crystal, changed(crystal, "moved"), strained], ["train", "train", "test"]).empty


def test_molecules_of_one_reduced_formula_or_another_shape_are_not_duplicates():
    benzene, acetylene = to_structure(molecule("C6H6")), to_structure(molecule("C2H2"))
    assert not are_near(benzene, acetylene)
    peroxide = molecule("H2O2")
    peroxide.set_dihedral(2, 0, 1, 3, peroxide.get_dihedral(2, 0, 1, 3) + 2)
    assert not are_near(to_structure(molecule("H2O2")), to_structure(peroxide))


# --- which rows go --------------------------------------------------------------------------------


def shifted(steps: float) -> Structure:
    """Quartz with one atom moved by so many times the tolerance that is still let pass."""
    crystal = CRYSTALS["quartz"]
    positions = crystal.positions.copy()
    positions[0, 0] += steps * 2.4 * TOLERANCE
    return Structure(crystal.numbers, positions, crystal.cell, crystal.pbc)


def test_in_a_chain_a_row_goes_for_its_own_partner_only():
    a, b, c = shifted(0), shifted(1), shifted(2)
    assert are_near(a, b)
    assert are_near(b, c)
    assert not are_near(a, c)
    assert found([a, b, c], ["train", "train", "test"])["id"].tolist() == ["s1"]
    rows = found([a, b, c], ["train", "val", "test"])
    assert rows[["id", "other_id"]].to_numpy().tolist() == [["s0", "s1"], ["s1", "s2"]]


def test_all_of_a_group_go_in_whatever_order_and_chunks_the_data_are():
    crystals = [CRYSTALS[name] for name in ("rutile", "quartz", "monoclinic")]
    structures = [changed(c, EVERYTHING, seed) for seed in range(6) for c in crystals]
    structures += structures[:3]  # exact duplicates among them
    splits = ["train"] * 12 + ["val"] * 3 + ["test"] * 3 + ["val"] * 3
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(structures))
        rows = found(structures, splits, order=order, chunk_size=4 + seed)
        wanted = sorted(set(range(len(structures))) - {15, 16, 17})
        assert sorted(rows["record"] - 100) == wanted
        assert rows["record"].is_unique
        assert set(rows["other_split"]) == {"test", "val"}
