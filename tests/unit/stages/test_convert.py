"""Stage `convert`: properties of structures in the shard, per atom or per structure by name."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

import atomloom
from atomloom.stages.convert import ReadRecords, collect_properties, read_chunk, write_structures
from atomloom.structures import Structure


def structure(count: int, **properties) -> Structure:
    """Atoms in a row."""
    positions = np.arange(3.0 * count).reshape(count, 3)
    per_atom = frozenset(properties.pop("per_atom", ()))
    return Structure(
        np.full(count, 22), positions, 50 * np.eye(3), np.ones(3), properties, per_atom=per_atom
    )


def through_a_shard(folder, structures):
    write_structures(
        folder / "x.zarr.zip", ReadRecords(structures, list(range(len(structures))), []), {}
    )
    return read_chunk(folder / "x.zarr.zip").table


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_what_has_a_row_per_atom_does_not_depend_on_the_number_of_atoms(tmp_path, count):
    numbers = np.arange(9.0).reshape(3, 3)
    rows = np.arange(3.0 * count).reshape(count, 3)
    given = [
        structure(
            count,
            energy=-1.0 * n,
            stress=numbers + n,
            dipole=numbers[0] + n,
            bands=np.arange(9.0),
            forces=rows + n,
            spins=rows[:, 0],
            per_atom=["spins"],
        )
        for n in range(4)
    ]
    table = through_a_shard(tmp_path, given)
    assert table.per_atom == {"forces", "spins"}
    shapes = {name: array.shape for name, array in table.properties.items()}
    assert shapes == {
        "energy": (4,), "stress": (4, 3, 3), "dipole": (4, 3), "bands": (4, 9),
        "forces": (4 * count, 3), "spins": (4 * count,),
    }  # fmt: skip
    np.testing.assert_array_equal(table.properties["stress"][2], numbers + 2)
    np.testing.assert_array_equal(table.properties["forces"][-count:], rows + 3)


def test_a_value_that_is_missing_or_of_another_shape_than_most_is_nan(tmp_path):
    rows = np.ones((2, 3))
    given = [
        structure(2, gap=1.0, forces=rows),
        structure(3),
        structure(1, gap=np.array([1.0, 2.0])),
        structure(2, gap=4.0, forces=2 * rows),
    ]
    table = through_a_shard(tmp_path, given)
    np.testing.assert_array_equal(table.properties["gap"], [1.0, np.nan, np.nan, 4.0])
    assert np.isnan(table.properties["forces"][2:6]).all()
    np.testing.assert_array_equal(table.properties["forces"][6:], 2 * rows)


def test_names_with_a_slash_are_kept_apart(tmp_path):
    table = through_a_shard(tmp_path, [structure(2, **{"U/eV": 1.0, "U_eV": 2.0, "U%2FeV": 3.0})])
    assert {name: values.tolist() for name, values in table.properties.items()} == {
        "U/eV": [1.0], "U_eV": [2.0], "U%2FeV": [3.0],
    }  # fmt: skip


def test_properties_are_collected_in_one_pass_over_the_structures():
    class Counting(dict):
        """Properties that count how often they are asked for."""

        asked = 0

        def items(self):
            Counting.asked += 1
            return super().items()

        def get(self, *_):
            raise AssertionError("a look-up per name and structure")

    given = [structure(1, energy=1.0) for _ in range(100)]
    for item in given:
        item.__dict__["properties"] = Counting(item.properties)
    arrays, _ = collect_properties(given)
    assert arrays["energy"].shape == (100,)
    assert Counting.asked == 100


def test_a_potential_is_trained_on_stress_of_cells_of_three_atoms(tmp_path):
    rng = np.random.default_rng(0)
    cells = []
    for _ in range(12):
        atoms = Atoms("TiO2", [[0, 0, 0], [1.2, 1.2, 0], [2.8, 2.8, 0]], cell=[4, 4, 4], pbc=True)
        atoms.rattle(0.05, rng=rng)
        results = {"energy": 1.0, "forces": rng.normal(size=(3, 3)), "stress": rng.normal(size=6)}
        atoms.calc = SinglePointCalculator(atoms, **results)
        cells.append(atoms)
    run = atomloom.train(
        cells,
        ["energy", "forces", "stress"],
        model={"name": "painn", "width": 8, "layers": 1},
        graph={"neighbors": "radius", "cutoff": 5.0},
        folder=tmp_path,
        epochs=1,
        batch={"structures": 8},
        threads=1,
        device="cpu",
        split={"ratios": [0.6, 0.2, 0.2], "duplicates": "report"},
        log=lambda _: None,
    )
    stress = atomloom.read(next((tmp_path / "store" / "given").glob("*.extxyz")))[5]
    np.testing.assert_allclose(
        stress.properties["stress"], cells[5].get_stress(voigt=False), rtol=1e-14
    )
    assert run.metrics["stress"]["test"]["mae"] > 0
