"""A potential for copper: trained on labelled frames, checked, and used by ASE to relax a crystal.

    python examples/potential.py

ASE's EMT makes the labels, so that everything can be compared with the truth. With frames of your own
(extxyz, vasprun.xml, ...) give their path in place of `frames`. Results go to results/copper/, here.
"""

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

import atomloom

# Cells of four atoms, compressed, stretched and rattled, with energy, forces and stress.
draw = np.random.default_rng(0)
frames = []
for seed in range(60):
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array * draw.uniform(0.94, 1.07), scale_atoms=True)
    atoms.rattle(0.04 * (seed % 5), seed=seed)
    atoms.calc = EMT()
    atoms.get_stress()
    frames.append(atoms)

# A small network on fixed descriptors, trained by L-BFGS, learns this in seconds. For more elements and
# many frames: model={"name": "painn", "width": 64}, and no `optimizer`.
run = atomloom.train(
    frames,
    ["energy", "forces", "stress"],
    name="copper",
    model={
        "name": "chebyshev",
        "species": ["Cu"],
        "radial_order": 8,
        "radial_cutoff": 5.0,
        "angular_order": 3,
        "angular_cutoff": 4.0,
        "hidden": [10],
    },
    optimizer="lbfgs",
    epochs=20,
    batch={"structures": 20},
    precision="64",
)
for target in ("energy_per_atom", "forces", "stress"):
    print(f"test MAE of {target}: {run.metrics[target]['test']['mae']:.4f}")

# The model file is an ASE calculator.
potential = run.folder / "model.safetensors"
crystal = bulk("Cu", cubic=True) * (2, 1, 1)
crystal.rattle(0.1, seed=1)
crystal.calc = atomloom.AtomloomCalculator(potential)

# Forces are the derivative of the energy: the same by central differences.
forces = crystal.get_forces()
moved = crystal.copy()
moved.calc = crystal.calc
step, ends = 1e-4, []
for sign in (1, -1):
    moved.positions = crystal.positions
    moved.positions[0, 0] += sign * step
    ends.append(moved.get_potential_energy())
numerical = -(ends[0] - ends[1]) / (2 * step)
print(f"force {forces[0, 0]:.6f} eV/A; by differences of the energy {numerical:.6f} eV/A")

# Relaxation of atoms and cell, beside the same by EMT.
lengths = {}
for name, calculator in (("potential", crystal.calc), ("EMT", EMT())):
    relaxed = crystal.copy()
    relaxed.calc = calculator
    BFGS(FrechetCellFilter(relaxed), logfile=None).run(fmax=0.02, steps=200)
    lengths[name] = (4 * relaxed.get_volume() / len(relaxed)) ** (1 / 3)
    print(f"lattice constant relaxed by {name}: {lengths[name]:.3f} A")
