"""A property model from a folder of CIFs and a CSV: trained, judged, drawn, used.

    python examples/cohesive_energies.py

The embedded demo has 434 crystals with cohesive energies. With structures and numbers of your own, only
the first lines change. Results go to results/cohesive-energies/, here.
"""

from pathlib import Path

import pandas as pd

import atomloom

DEMO = Path(__file__).resolve().parents[1] / "resources" / "demo_crystals"
TARGET = "cohesive_energy_per_atom"

# Structures and a number for each: here a folder of CIFs and a table whose ids are the files' names.
# Lists of pymatgen, ASE or jarvis-tools structures do as well.
crystals = atomloom.read(DEMO / "cif")
table = pd.read_csv(DEMO / "id_prop.csv", index_col="id")
energies = table.loc[[crystal.id for crystal in crystals], TARGET]

# The demo has each compound seven times, strained and rattled: all seven are kept in one split, or the
# test would be of what was trained on. What is not said here has its default (config/README.md).
run = atomloom.train(
    crystals,
    energies,
    name="cohesive-energies",
    target=TARGET,
    unit="eV/atom",
    split={"group": "formula", "seed": 1},
    model={"name": "icomformer", "width": 32, "layers": 2},
    epochs=10,
    batch={"structures": 16},
    learning_rate=2e-3,
    ema_decay=0.98,
)

# Errors of compounds that training has never seen, beside those of guessing the mean.
test = run.predictions.query("split == 'test'")
guess = (test[TARGET] - energies.mean()).abs().mean()
print(f"test MAE {run.metrics[TARGET]['test']['mae']:.2f} eV/atom; of the mean {guess:.2f} eV/atom")

# Any other structure: `run.predict`, or the model file alone, anywhere.
model = atomloom.load_model(run.folder / "model.safetensors")
(predicted,) = model.predict([crystals[0]])[0]
print(f"{crystals[0].id}: {predicted:.2f} eV/atom predicted, {energies.iloc[0]:.2f} in the table")

print("parity figure:", run.folder / "parity.png")
print("report:", run.report)
