"""AtomloomCalculator: ASE's conventions, committees, batches, relaxations, dynamics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import atomloom
from atomloom.errors import AtomloomError
from atomloom.potentials.committee import Committee
from atomloom.potentials.evaluation import calculate_batch
from tests.unit.potentials.models import write_potential, write_property_model


def rattled(atoms: Atoms, size: float = 0.08, seed: int = 0) -> Atoms:
    atoms.rattle(size, seed=seed)
    return atoms


def rutile() -> Atoms:
    """TiO2, six atoms."""
    u = 0.305
    places = [(0, 0, 0), (0.5, 0.5, 0.5), (u, u, 0), (1 - u, 1 - u, 0)]
    places += [(0.5 - u, 0.5 + u, 0.5), (0.5 + u, 0.5 - u, 0.5)]
    return Atoms("Ti2O4", scaled_positions=places, cell=[4.594, 4.594, 2.959], pbc=True)


def test_forces_and_stress_are_derivatives_of_the_energy(copper):
    """Stress in ASE's order and sign, by ASE's own finite differences."""
    crystal = rattled(bulk("Cu", cubic=True), 0.15)
    strain = [[1.02, 0.03, 0], [0, 0.99, 0.02], [0, 0, 1]]
    crystal.set_cell(crystal.cell.array @ strain, scale_atoms=True)
    crystal.calc = atomloom.AtomloomCalculator(copper, dtype="float64")
    forces, stress = crystal.get_forces(), crystal.get_stress()
    assert np.abs(calculate_numerical_forces(crystal, 1e-4) - forces).max() < 1e-7
    assert np.abs(calculate_numerical_stress(crystal, 1e-4) - stress).max() < 1e-7
    assert np.ptp(stress) > 1e-3 > 1e-7


def test_results_are_complete_and_agree_with_each_other(copper):
    crystal = rattled(bulk("Cu", cubic=True))
    crystal.calc = atomloom.AtomloomCalculator(copper)
    energy = crystal.get_potential_energy()
    assert crystal.get_potential_energy(force_consistent=True) == energy
    assert crystal.get_potential_energies().sum() == pytest.approx(energy, abs=1e-9)
    assert crystal.get_forces().shape == (4, 3)
    assert np.abs(crystal.get_forces().sum(axis=0)).max() < 1e-5
    assert "energy_std" not in crystal.calc.results
    assert set(crystal.calc.export_properties()) >= {"energy", "forces", "stress"}


def test_energy_is_that_of_load_model(copper):
    crystals = [rattled(bulk("Cu", cubic=True)), bulk("Cu"), rattled(bulk("Cu") * (2, 1, 1))]
    predicted = atomloom.load_model(copper).predict(crystals)
    assert predicted.shape == (3, 1)
    calculator = atomloom.AtomloomCalculator(copper)
    for crystal, energy in zip(crystals, predicted[:, 0], strict=True):
        assert calculator.get_potential_energy(crystal) == pytest.approx(energy, abs=1e-5)


def test_a_molecule_has_no_stress(organic):
    ethanol = rattled(molecule("CH3CH2OH"))
    ethanol.calc = atomloom.AtomloomCalculator(organic, dtype="float64")
    forces = ethanol.get_forces()
    assert np.abs(calculate_numerical_forces(ethanol, 1e-4) - forces).max() < 1e-7
    with pytest.raises(PropertyNotImplementedError):
        ethanol.get_stress()
    ethanol.center(vacuum=6.0)
    assert ethanol.get_stress().shape == (6,)


def test_a_slab_feels_only_its_own_images(copper):
    slab = rattled(fcc111("Cu", (2, 2, 3), vacuum=1.0))
    slab.calc = atomloom.AtomloomCalculator(copper)
    assert slab.pbc.tolist() == [True, True, False]
    alone = slab.get_potential_energy()
    slab.cell[2, 2] += 10.0
    assert slab.get_potential_energy() == pytest.approx(alone, abs=1e-5)
    slab.cell[2, 2] -= 10.0
    slab.pbc = True
    assert abs(slab.get_potential_energy() - alone) > 1e-2


def test_one_calculator_serves_one_structure_after_the_other(copper):
    calculator = atomloom.AtomloomCalculator(copper)
    crystals = [
        rattled(bulk("Cu", cubic=True)),
        bulk("Cu"),
        rattled(bulk("Cu", cubic=True), seed=1),
    ]
    for crystal in [*crystals, *crystals]:
        wanted = atomloom.AtomloomCalculator(copper, skin=0).get_potential_energy(crystal)
        assert calculator.get_potential_energy(crystal) == pytest.approx(wanted, abs=1e-6)


def test_a_committee_gives_mean_and_standard_deviation(committee):
    crystal = rattled(bulk("Cu", cubic=True))
    together = atomloom.AtomloomCalculator(committee, dtype="float64")
    together.calculate(crystal)
    single = []
    for path in committee:
        calculator = atomloom.AtomloomCalculator(path, dtype="float64")
        calculator.calculate(crystal)
        single.append(calculator.results)
    for name in ("energy", "forces", "stress", "energies"):
        values = np.array([results[name] for results in single])
        assert np.allclose(together.results[name], values.mean(axis=0), rtol=0, atol=1e-10)
        if name != "energies":
            deviation = values.std(axis=0, ddof=1)
            assert np.allclose(together.results[f"{name}_std"], deviation, rtol=0, atol=1e-10)
    assert together.results["energy_std"] > 0.01
    assert together.get_property("forces_std", crystal).shape == (4, 3)


@pytest.mark.parametrize("kind", ["copper", "oxide", "organic"])
def test_a_batch_is_its_structures_one_by_one(kind, request):
    path = request.getfixturevalue(kind)
    if kind == "copper":
        structures = [
            bulk("Cu"),
            bulk("Cu", cubic=True) * (2, 2, 1),
            Atoms("Cu"),
            Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]]),
        ]
    elif kind == "oxide":
        structures = [
            rutile(),
            rutile() * (1, 1, 2),
            Atoms("TiO2", [[0, 0, 0], [1.6, 0, 0], [0, 1.6, 0]]),
        ]
    else:
        structures = [molecule(n) for n in ("H2O", "CH4", "C6H6", "CH3CH2OH", "N2", "H")]
    for place, structure in enumerate(structures):
        structure.rattle(0.05, seed=place)
    calculator = atomloom.AtomloomCalculator(path, dtype="float64")
    together = calculator.calculate_batch(structures)
    assert len(together) == len(structures)
    for structure, results in zip(structures, together, strict=True):
        calculator.calculate(structure)
        assert set(results) == set(calculator.results)
        for name, value in calculator.results.items():
            assert np.allclose(results[name], value, rtol=0, atol=1e-10), name


def test_a_batch_leaves_results_and_neighbours_of_the_calculator_alone(copper):
    crystal = rattled(bulk("Cu", cubic=True))
    crystal.calc = atomloom.AtomloomCalculator(copper)
    energy = crystal.get_potential_energy()
    crystal.calc.calculate_batch([bulk("Cu")])
    assert crystal.calc.results["energy"] == energy
    assert crystal.calc.searches == 1
    assert crystal.calc.calculate_batch([]) == []


@pytest.mark.parametrize("skin", [0.3, 1.0])
def test_dynamics_with_a_skin_are_those_with_a_search_at_every_step(copper, skin):
    def run(skin):
        crystal = bulk("Cu", cubic=True) * (2, 2, 2)
        thermalize_momenta(crystal, temperature_K=900, rng=np.random.default_rng(0))
        crystal.calc = atomloom.AtomloomCalculator(copper, dtype="float64", skin=skin)
        VelocityVerlet(crystal, 4 * units.fs).run(60)
        return crystal

    kept, fresh = run(skin), run(0.0)
    assert np.abs(kept.positions - fresh.positions).max() < 1e-9
    assert fresh.calc.searches == 61
    assert kept.calc.searches < 20


@pytest.mark.parametrize("system", ["Cu", "TiO2"])
def test_energy_is_conserved(system, fitted, tmp_path):
    if system == "Cu":
        path, atoms = fitted, bulk("Cu", cubic=True) * (2, 2, 2)
    else:
        path = write_potential(tmp_path / "oxide.safetensors", ("Ti", "O"), scale=0.1)
        atoms = rutile() * (1, 1, 2)
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    atoms.calc = atomloom.AtomloomCalculator(path, dtype="float64")
    energies = []
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    dynamics.attach(
        lambda: energies.append((atoms.get_total_energy(), atoms.get_kinetic_energy())), 10
    )
    dynamics.run(150)
    total, kinetic = np.array(energies).T / len(atoms)
    assert np.ptp(total) < 5e-5  # eV an atom
    assert np.ptp(kinetic) > 20 * np.ptp(total)  # what is conserved did go to and fro
    assert 1 <= atoms.calc.searches < 40


def test_a_relaxation_of_cell_and_atoms_lowers_the_energy_and_converges(fitted):
    crystal = rattled(bulk("Cu", cubic=True), 0.05)
    crystal.set_cell(crystal.cell.array @ [[1.04, 0.02, 0], [0, 0.98, 0], [0, 0, 1.03]], True)
    crystal.calc = atomloom.AtomloomCalculator(fitted, skin=1.0)
    before = crystal.get_potential_energy()
    optimizer = BFGS(FrechetCellFilter(crystal), logfile=None)
    assert optimizer.run(fmax=0.005, steps=100)
    energy = crystal.get_potential_energy()
    assert energy < before - 0.1
    assert np.abs(crystal.get_forces()).max() < 0.005
    fresh = atomloom.AtomloomCalculator(fitted, skin=0)
    assert fresh.get_potential_energy(crystal) == pytest.approx(energy, abs=1e-9)
    assert crystal.calc.searches < optimizer.nsteps
    # Where EMT, which it was fitted to, has its minimum.
    reference = bulk("Cu", cubic=True)
    reference.calc = EMT()
    BFGS(FrechetCellFilter(reference), logfile=None).run(fmax=0.005)
    assert crystal.get_volume() == pytest.approx(reference.get_volume(), rel=0.03)
    assert energy == pytest.approx(reference.get_potential_energy(), abs=0.04)


def test_a_committee_that_is_open_changes_its_precision_where_asked(committee):
    single = Committee.open(committee)
    assert Committee.open(single) is single
    double = Committee.open(single, dtype="float64")
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    crystal = rattled(bulk("Cu", cubic=True))
    for asked in (single, double):
        assert all(next(m.model.parameters()).dtype == asked.dtype for m in asked.members)
    difference = (
        calculate_batch(single, [crystal]).energy - calculate_batch(double, [crystal]).energy
    )
    assert 0 < np.abs(difference).max() < 1e-4


def test_what_cannot_be_calculated_is_said_in_one_line(copper, tmp_path):
    with pytest.raises(AtomloomError, match="not trained on Al"):
        atomloom.AtomloomCalculator(copper).get_potential_energy(bulk("Al"))
    with pytest.raises(AtomloomError, match="not trained on Al"):
        atomloom.AtomloomCalculator(copper).calculate_batch([bulk("Cu"), bulk("Al")])
    with pytest.raises(AtomloomError, match="predicts gap and has no forces"):
        atomloom.AtomloomCalculator(write_property_model(tmp_path / "gap.safetensors"))
    other = write_potential(tmp_path / "short.safetensors", cutoff=4.0)
    with pytest.raises(AtomloomError, match="different graphs"):
        atomloom.AtomloomCalculator([copper, other])
    with pytest.raises(AtomloomError, match="not a precision"):
        atomloom.AtomloomCalculator(copper, dtype="float16")
    with pytest.raises(AtomloomError, match="no model here"):
        atomloom.AtomloomCalculator(tmp_path / "none.safetensors")
    with pytest.raises(AtomloomError, match="at least one potential"):
        atomloom.AtomloomCalculator([])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"dtpye": "float64"}, "no keyword `dtpye`, did you mean `dtype`"),
        ({"skins": 1.0}, "no keyword `skins`, did you mean `skin`"),
        ({"xc": "PBE"}, "no keyword `xc`; its constructor knows device, dtype, skin"),
        ({"skin": -1}, "skin: should be a length from 0 to 10 A, not -1"),
        ({"skin": np.nan}, "not nan"),
        ({"device": "gpu"}, "'gpu' is not a device; use auto, cpu or cuda"),
    ],
)
def test_a_keyword_that_would_be_kept_in_silence_is_refused(copper, words, says):
    with pytest.raises(AtomloomError, match=says):
        atomloom.AtomloomCalculator(copper, **words)
    if "skin" not in words and "device" not in words:
        with pytest.raises(AtomloomError, match=says):
            atomloom.AtomloomCalculator(copper).set(**words)


def test_keywords_of_ase_are_taken(copper, tmp_path):
    calculator = atomloom.AtomloomCalculator(copper, label="cu", directory=str(tmp_path))
    assert calculator.directory == str(tmp_path)
