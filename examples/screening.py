"""Screening a folder of candidates: a committee of models predicts, ranks, and says how sure it is.

    python examples/screening.py

The embedded demo again: some of its compounds are held back as candidates, in a folder of their own, and the
strongest bound are looked for. Results go to results/screening/, here.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

import atomloom

DEMO = Path(__file__).resolve().parents[1] / "resources" / "demo_crystals"
TARGET = "cohesive_energy_per_atom"
CANDIDATES = Path("candidates")

# What is known, and what is not: candidates are the relaxed crystals of a few compounds.
table = pd.read_csv(DEMO / "id_prop.csv", index_col="id")
held = table["formula"].isin(["LiBr", "NaCl", "KBr", "ZnS", "GaP"])
CANDIDATES.mkdir(exist_ok=True)
for name in table.index[held & table.index.str.endswith("-eq")]:
    shutil.copy(DEMO / "cif" / f"{name}.cif", CANDIDATES)
known = [crystal for crystal in atomloom.read(DEMO / "cif") if not held[crystal.id]]

# A committee: the same training from three seeds. Graphs are built once, for the first, and a model that
# is trained already is not trained again: run the script twice and see.
paths = []
for seed in range(3):
    run = atomloom.train(
        known,
        table.loc[[crystal.id for crystal in known], TARGET],
        name="screening",
        target=TARGET,
        split={"ratios": [0.9, 0.1], "group": "formula"},
        model={"name": "icomformer", "width": 32, "layers": 2},
        epochs=6,
        batch={"structures": 16},
        learning_rate=2e-3,
        ema_decay=0.98,
        training={"seed": seed},
        log=lambda line: None,
    )
    paths.append(run.folder / "model.safetensors")
    print(f"model {seed}: validation MAE {run.metrics[TARGET]['val']['mae']:.2f} eV/atom")

# From here on the model files are all that is needed.
candidates = atomloom.read(CANDIDATES)
votes = np.stack([atomloom.load_model(path).predict(candidates)[:, 0] for path in paths])

ranking = pd.DataFrame(
    {
        "id": [candidate.id for candidate in candidates],
        "predicted": votes.mean(axis=0),
        "uncertainty": votes.std(axis=0, ddof=1),
    }
).sort_values("predicted")
ranking["reference"] = table.loc[ranking["id"], TARGET].to_numpy()
ranking.to_csv("ranking.csv", index=False)
print(ranking.to_string(index=False, float_format="%.2f"))
