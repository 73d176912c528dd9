"""A small world for the tests of further targets: ionic molecules and crystals, charges by element."""

from __future__ import annotations

import numpy as np

from atomloom.config import GraphSpec, parse_config
from atomloom.data.dataset import LabelledGraphs
from atomloom.graphs.build import build_graphs
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from atomloom.targets import spec_of

CUTOFF = 5.0
CHARGE = {3: 1.0, 9: -1.0, 8: -2.0, 12: 2.0}
PAINN = {"name": "painn", "width": 8, "layers": 2, "rbf": 8, "cutoff": CUTOFF}
SMALL = {
    "painn": PAINN,
    "icomformer": {"name": "icomformer", "width": 8, "layers": 2},
    "ecomformer": {"name": "ecomformer", "width": 8, "layers": 2},
    "alignn": {
        "name": "alignn",
        "width": 8,
        "alignn_layers": 1,
        "gcn_layers": 1,
        "embedding": 4,
        "edge_bins": 8,
        "angle_bins": 8,
    },
    "crystal_transformer": {
        "name": "crystal_transformer",
        "width": 8,
        "layers": 2,
        "rbf": 8,
        "cutoff": CUTOFF,
    },
}


def ionic_molecules(count: int = 40, seed: int = 0) -> list[Structure]:
    """Neutral clusters with their `energy`, `forces`, `dipole` and `charges`."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        pairs = [(3, 9), (12, 8)]
        numbers = np.array([z for _ in range(draw.integers(1, 4)) for z in draw.choice(pairs)])
        grid = np.array([[x, y, z] for x in range(2) for y in range(2) for z in range(2)])
        places = 1.9 * grid[draw.permutation(8)[: len(numbers)]]
        places = places + draw.normal(0, 0.15, places.shape)
        charges = np.array([CHARGE[z] for z in numbers])
        apart = places[None] - places[:, None]
        far = np.sqrt((apart**2).sum(axis=2)) + np.eye(len(numbers))
        pair = charges[:, None] * charges / far * (1 - np.eye(len(numbers)))
        properties = {
            "energy": np.float64(0.5 * pair.sum()),
            "forces": -(pair / far**2)[..., None].transpose(0, 1, 2) * apart,
            "dipole": charges @ places,
            "charges": charges + 0.1 * pair.sum(axis=1),
        }
        properties["forces"] = properties["forces"].sum(axis=1)
        made.append(
            Structure(
                numbers.astype(np.uint8),
                places,
                np.zeros((3, 3)),
                np.zeros(3, dtype=bool),
                properties=properties,
                per_atom=frozenset(("forces", "charges")),
            )
        )
    return made


def crystals(count: int = 24, seed: int = 0) -> list[Structure]:
    """Crystals with a `gap` and `charges`."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        numbers = draw.choice([3, 9, 8], size=draw.integers(2, 5))
        cell = np.eye(3) * draw.uniform(3.8, 4.6) + draw.normal(0, 0.2, (3, 3))
        grid = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
        places = (grid[: len(numbers)] + draw.normal(0, 0.04, (len(numbers), 3))) @ cell
        charges = np.array([CHARGE[z] for z in numbers])
        made.append(
            Structure(
                numbers.astype(np.uint8),
                places,
                cell,
                np.ones(3, dtype=bool),
                properties={
                    "gap": np.float64(5.0 + numbers.mean()),
                    "charges": charges - charges.mean(),
                },
                per_atom=frozenset(("charges",)),
            )
        )
    return made


def config_of(targets, model="painn", dataset=None, **training):
    """A config of these targets."""
    return parse_config(
        {
            "dataset": {"name": "test", "source": ["none"], "target": list(targets)}
            | (dataset or {}),
            "model": SMALL[model],
            "training": {
                "epochs": 3,
                "batch": {"structures": 8},
                "threads": 1,
                "device": "cpu",
                "learning_rate": 0.01,
            }
            | training,
        }
    )


def data_of(structures, config, hide=None) -> LabelledGraphs:
    """Labelled graphs of a config's targets; `hide` by name are rows whose values are unknown."""
    spec = GraphSpec(**config.graph.model_dump())
    table = build_graphs(StructureTable.from_structures(structures), spec)
    columns = [one.name for one in config.targets if one.is_column]
    targets = np.array([[s.properties[n] for n in columns] for s in structures], dtype=np.float64)
    targets = targets.reshape(len(structures), len(columns))
    arrays = {}
    for one in config.targets:
        if not one.is_column:
            join = np.concatenate if one.per == "atom" else np.stack
            arrays[one.name] = join([s.properties[one.name] for s in structures]).astype(float)
    for name, rows in (hide or {}).items():
        if name in columns:
            targets[rows, columns.index(name)] = np.nan
            continue
        of_atoms = spec_of(name, kind_of(config, name)).per == "atom"
        for row in rows:
            where = slice(*table.node_ptr[row : row + 2]) if of_atoms else row
            arrays[name][where] = np.nan
    rows = np.random.default_rng(0).permutation(len(structures))
    val = max(2, len(structures) // 5)
    return LabelledGraphs(
        table,
        targets,
        {"train": rows[val:], "val": rows[:val]},
        arrays=arrays,
        specs=[one for one in config.targets if not one.is_column],
    )


def kind_of(config, name: str) -> str:
    """Kind of a target."""
    return next(one.kind for one in config.targets if one.name == name)
