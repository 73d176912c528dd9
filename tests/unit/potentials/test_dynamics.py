"""Dynamics of many replicas: ASE's on one, and each the same alone and in company."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read
from ase.md.langevin import Langevin as AseLangevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet as AseVerlet

import atomloom
from atomloom.errors import AtomloomError
from atomloom.potentials.committee import Committee
from atomloom.potentials.dynamics import Langevin, TrajectoryFiles, VelocityVerlet

FS = units.fs


def warm(atoms, temperature=300.0, seed=0):
    thermalize_momenta(atoms, temperature_K=temperature, rng=np.random.default_rng(seed))
    return atoms


def replicas():
    """Of several sizes, one of them strained."""
    found = [bulk("Cu", cubic=True), bulk("Cu", cubic=True) * (2, 1, 1), bulk("Cu") * (2, 2, 2)]
    found[2].set_cell(found[2].cell.array * 1.02, scale_atoms=True)
    return [warm(atoms, 600, seed) for seed, atoms in enumerate(found)]


def test_verlet_is_ases_to_rounding(fitted):
    start = warm(bulk("Cu", cubic=True) * (2, 2, 1), 600)
    ours = VelocityVerlet(fitted, [start], 2 * FS)
    ours.run(80)
    theirs = start.copy()
    theirs.calc = atomloom.AtomloomCalculator(fitted)
    AseVerlet(theirs, 2 * FS).run(80)
    assert np.abs(ours.positions - theirs.positions).max() < 1e-12
    assert np.abs(ours.momenta - theirs.get_momenta()).max() < 1e-12
    (end,) = ours.atoms()
    assert end.get_potential_energy() == pytest.approx(theirs.get_potential_energy(), abs=1e-12)
    assert end.get_temperature() == pytest.approx(ours.frame().temperature[0], rel=1e-12)
    assert np.abs(ours.positions - start.positions).max() > 0.1


@pytest.mark.parametrize("kind", ["verlet", "langevin"])
def test_a_replica_moves_the_same_alone_and_in_company(fitted, kind):
    def run(atoms, seeds):
        if kind == "verlet":
            dynamics = VelocityVerlet(fitted, atoms, 2 * FS)
        else:
            options = {"temperature_K": 500, "friction": 0.02 / FS, "seeds": seeds}
            dynamics = Langevin(fitted, atoms, 2 * FS, **options)
        dynamics.run(40)
        return dynamics.atoms()

    together = run(replicas(), [5, 6, 7])
    for place, atoms in enumerate(replicas()):
        (alone,) = run([atoms], [5 + place])
        assert np.abs(alone.positions - together[place].positions).max() < 1e-10


def test_langevin_without_friction_is_verlet(fitted):
    a = VelocityVerlet(fitted, replicas(), 2 * FS)
    b = Langevin(fitted, replicas(), 2 * FS, temperature_K=300, friction=0.0)
    a.run(30)
    b.run(30)
    assert np.abs(a.positions - b.positions).max() < 1e-12


def test_langevin_reaches_its_temperatures_as_ases_does(fitted):
    """16 replicas at two temperatures; the means over replicas and times, with their errors."""
    wanted = np.repeat([300.0, 700.0], 8)
    start = [bulk("Cu", cubic=True) * (2, 1, 1) for _ in wanted]
    dynamics = Langevin(fitted, start, 4 * FS, temperature_K=wanted, friction=0.05 / FS)
    found = []
    dynamics.attach(lambda frame: found.append(frame.temperature.copy()), 5)
    dynamics.run(500)
    means = np.array(found)[20:].mean(axis=0).reshape(2, 8)
    # 24 degrees of freedom: 29 % at any time, some 40 independent times, 8 replicas.
    assert means.mean(axis=1) == pytest.approx([300.0, 700.0], rel=0.07)
    theirs = start[0].copy()
    theirs.calc = atomloom.AtomloomCalculator(fitted)
    ase = AseLangevin(
        theirs, 4 * FS, temperature_K=300, friction=0.05 / FS, fixcm=False,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    temperatures = []
    ase.attach(lambda: temperatures.append(theirs.get_temperature()), 5)
    ase.run(500)
    assert np.mean(temperatures[20:]) == pytest.approx(means[0].mean(), rel=0.2)


def test_noise_is_a_function_of_the_seed(fitted):
    def end(seeds):
        atoms = [bulk("Cu", cubic=True) for _ in seeds]
        run = Langevin(fitted, atoms, 2 * FS, temperature_K=300, friction=0.1 / FS, seeds=seeds)
        run.run(5)
        return run.positions.reshape(len(seeds), -1)

    same, other = end([3, 3, 4]), end([3, 3, 4])
    assert np.array_equal(same, other)
    assert np.abs(same[0] - same[1]).max() < 1e-12
    assert np.abs(same[0] - same[2]).max() > 1e-3


def test_fixed_atoms_stay_and_count_no_degrees_of_freedom(fitted):
    crystal = warm(bulk("Cu", cubic=True))
    crystal.constraints = FixAtoms([0, 1])
    run = Langevin(fitted, [crystal], 2 * FS, temperature_K=300, friction=0.1 / FS)
    run.run(20)
    moved = np.abs(run.positions - crystal.positions).max(axis=1)
    assert (moved[:2] == 0).all()
    assert (moved[2:] > 0).all()
    (end,) = run.atoms()
    assert run.frame().temperature[0] == pytest.approx(end.get_temperature(), rel=1e-12)


def test_observers_see_the_frames_they_asked_for(fitted, committee, tmp_path):
    run = VelocityVerlet(Committee.open(committee), replicas(), 1 * FS, dtype="float64")
    steps, times, deviations = [], [], []
    run.attach(lambda frame: steps.append(frame.step), 4)
    run.attach(lambda frame: times.append(frame.time / FS), 8)
    run.attach(lambda frame: deviations.append(frame.evaluation.deviation.energy), 8)
    files = [tmp_path / "runs" / f"{place}.xyz" for place in range(3)]
    run.attach(TrajectoryFiles(run, files), 4)
    run.run(5)
    run.run(3)
    assert steps == [0, 4, 8]
    assert times == pytest.approx([0, 8])
    assert np.shape(deviations) == (2, 3)
    for place, file in enumerate(files):
        frames = read(file, ":")
        assert [frame.info["step"] for frame in frames] == steps
        assert np.allclose(frames[-1].positions, run.atoms()[place].positions, atol=1e-6)
        assert frames[-1].get_potential_energy() == pytest.approx(
            run.evaluation.energy[place], abs=1e-6
        )


def test_inputs_are_left_as_they_are(fitted):
    atoms = replicas()
    before = [(a.positions.copy(), a.get_momenta()) for a in atoms]
    VelocityVerlet(fitted, atoms, 2 * FS).run(3)
    for structure, (positions, momenta) in zip(atoms, before, strict=True):
        assert np.array_equal(structure.positions, positions)
        assert np.array_equal(structure.get_momenta(), momenta)


def test_what_cannot_be_run_is_said_in_one_line(fitted):
    with pytest.raises(AtomloomError, match="no replicas"):
        VelocityVerlet(fitted, [], FS)
    with pytest.raises(AtomloomError, match="time step of 0"):
        VelocityVerlet(fitted, replicas(), 0)
    with pytest.raises(AtomloomError, match="not trained on"):
        VelocityVerlet(fitted, [molecule("H2O")], FS)
    bound = replicas()[0]
    bound.constraints = FixBondLength(0, 1)
    with pytest.raises(AtomloomError, match="cannot keep a FixBondLength"):
        VelocityVerlet(fitted, [bound], FS)
    with pytest.raises(AtomloomError, match="2 seeds for 3 replicas"):
        Langevin(fitted, replicas(), FS, temperature_K=1, friction=1, seeds=[1, 2])
    with pytest.raises(AtomloomError, match="temperature_K"):
        Langevin(fitted, replicas(), FS, temperature_K=[1, 2], friction=1)
    run = VelocityVerlet(fitted, replicas(), FS)
    run.momenta[5] = np.inf
    with pytest.raises(AtomloomError, match="replica 1 has blown up in step 1"):
        run.run(1)
