"""Stage `evaluate`: predictions of the trained model for every labelled structure, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from atomloom.config import Batching, Config
from atomloom.data.dataset import LabelledGraphs
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.graphs.graph import Graph, GraphTable
from atomloom.inference.devices import choose_device, cpu_threads, device_name
from atomloom.inference.metrics import split_metrics
from atomloom.inference.predict import LoadedModel, atoms_of, load_model, predict_all
from atomloom.pipeline.paths import RunPaths
from atomloom.pipeline.published import verdicts
from atomloom.pipeline.run_card import record_results
from atomloom.potentials.evaluation import evaluate_table
from atomloom.potentials.students import TIMED, compare_with_teacher
from atomloom.reports.figures import parity_figure
from atomloom.stages.label import read_labels
from atomloom.stages.labelled import load_records
from atomloom.stages.labels import array_targets
from atomloom.store.files import file_digest, write_atomically, write_json, write_text
from atomloom.store.parquet import write_table
from atomloom.structures.elements import SYMBOLS
from atomloom.structures.structure import Structure
from atomloom.targets import TargetSpec

PARITY = "parity.png"
BLOCK = 10_000
"""Number of structures whose graphs are in memory at a time."""
DESCRIPTION = ["id", "split", "formula", "elements", "n_atoms"]


def evaluate_run(places: RunPaths, log: Callable[[str], None]) -> Path:
    """Write `predictions.parquet` and `.csv`, `metrics.json` and `.csv`, and `parity.png`; return the run's folder.

    With several classes the most likely is predicted, and columns `NAME_p0`, `NAME_p1`, ... hold the
    probabilities.

    Targets that are more than a number per structure have a table each, such as `forces.parquet` and
    `stress.parquet`: one row per number, with its component, and per atom with the atom and its element.

    Raises:
        AtomloomError: when the run is not trained, or index or split are missing.
    """
    run, config = places.run, places.config
    labelled = load_records(places)
    data, frame, rows = labelled.data, labelled.frame, labelled.rows
    model = load_model(run / "model.safetensors")
    units, energies = reported_units(config), any(spec.of_energy for spec in config.targets)
    with cpu_threads(config.training.threads):
        tables = predicted_tables(config, model, data, frame, rows)
        done_by = {"device": device_name(choose_device("auto")), "threads": torch.get_num_threads()}
    table = tables["predictions"]
    for name, content in tables.items():
        write_table(run / f"{name}.parquet", content)
    write_atomically(run / "predictions.csv", lambda path: table.to_csv(path, index=False))
    metrics = metrics_of(config, tables)
    write_json(run / "metrics.json", metrics)
    write_text(run / "metrics.csv", metrics_table(metrics, units).to_csv(index=False))
    write_parity(places, [tables.get(name, table) for name in units], units)
    if warning := guesses(model.card.elements, frame["elements"]):
        log(warning)
    for name, unit in units.items():
        for split, values in metrics[name].items():
            log(f"{split:5s} {name}: {_headline(values, unit)} over {values['count']:,}")
    for verdict in verdicts(config.published, [metrics], units):
        log(verdict.line)
    if config.teacher is not None and energies:
        _compare_with_teacher(places, data, log)
    results = [
        *("metrics.json", "metrics.csv", "predictions.csv"),
        *(f"{name}.parquet" for name in tables),
    ]
    record_results(run, {name: file_digest(run / name) for name in results}, evaluated=done_by)
    return run


def guesses(known: Collection[str] | None, elements: pd.Series[str]) -> str:
    """Warning of structures with elements that no training structure has; empty if there are none.

    Args:
        known: elements of the training structures; None if the model does not tell.
        elements: the elements of each structure, divided by commas.
    """
    unseen = elements.map(lambda text: set(str(text).split(",")) - set(known or ()))
    count = int(unseen.map(bool).sum())
    if known is None or not count:
        return ""
    return (
        f"warning: {count:,} structures hold elements that no training structure has "
        f"({', '.join(sorted(set().union(*unseen)))}): their predictions are guesses"
    )


def predicted_tables(
    config: Config, model: LoadedModel, data: LabelledGraphs, frame: pd.DataFrame, rows: np.ndarray
) -> dict[str, pd.DataFrame]:
    """Labels and predictions as tables: `predictions`, and one per target beyond scalars per structure.

    Args:
        config: the config with the targets.
        model: the trained model.
        data: the labelled graphs.
        frame: [D] rows of the data set.
        rows: [D], their rows of `data.table`.
    """
    energies = any(spec.of_energy for spec in config.targets)
    evaluate = _evaluate_potential if energies else _predict_properties
    scalars, arrays = evaluate(config.training.batch, model, data, frame, rows)
    return {"predictions": scalars, **_array_tables(config, data, frame, rows, arrays)}


def metrics_of(
    config: Config, tables: Mapping[str, pd.DataFrame]
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Metrics by target and split, from the tables of `predicted_tables`."""
    return {
        name: split_metrics(
            tables.get(name, tables["predictions"]),
            name,
            config.training.classes,
            config.split.names,
            name in config.training.log_targets,
        )
        for name in reported_units(config)
    }


def metrics_table(
    metrics: Mapping[str, Mapping[str, Mapping[str, float | int | None]]], units: Mapping[str, str]
) -> pd.DataFrame:
    """Metrics as a table, one row per target and split."""
    return pd.DataFrame(
        [
            {"target": target, "unit": units[target], "split": split, **values}
            for target, splits in metrics.items()
            for split, values in splits.items()
        ]
    )


def reported_units(config: Config) -> dict[str, str]:
    """Names under which errors are reported, with their units; classes have none."""
    classes = config.training.classes
    return {spec.reported: "" if classes else spec.reported_unit for spec in config.targets}


def write_parity(
    places: RunPaths, tables: Sequence[pd.DataFrame], units: Mapping[str, str]
) -> None:
    """Write `parity.png` of some targets, whose predictions are in these tables."""
    names, named = list(units), tuple(places.config.split.test)
    write_atomically(
        places.run / PARITY, lambda path: parity_figure(tables, names, units, path, named)
    )


def _compare_with_teacher(
    places: RunPaths, data: LabelledGraphs, log: Callable[[str], None]
) -> None:
    """Write `student.json`: time of student and teacher, and their agreement in a short dynamics."""
    teacher, run = places.config.teacher, places.run
    assert teacher is not None
    labels = (read_labels(places.layout.labels(key)) for key in places.plan.chunk_keys)
    seconds = [label.seconds for label in labels]
    held_out = ("test", *places.config.split.test, "val", "train")
    unseen = next(rows for name in held_out if len(rows := data.split(name)))
    graphs = _graphs_of(data, unseen[:TIMED])
    structures = [_structure(graphs[place]) for place in range(len(graphs))]
    found = compare_with_teacher(
        teacher, run / "model.safetensors", structures, float(np.median(np.concatenate(seconds)))
    )
    write_json(run / "student.json", {"teacher": teacher.calculator, **asdict(found)})
    log(
        f"{found.teacher_seconds / found.student_seconds:.3g} times as fast as {teacher.calculator}, "
        f"{found.teacher_seconds / found.student_batch_seconds:.3g} in batches"
    )
    if found.energy_rmse is not None and found.drift is not None:
        log(
            f"over {found.steps} steps of dynamics: forces {found.force_rmse:.3g} eV/A, energies "
            f"{1e3 * found.energy_rmse:.3g} meV/atom from the teacher; drift {1e3 * found.drift:.2g} meV/atom"
        )


def _graphs_of(data: LabelledGraphs, rows: np.ndarray) -> GraphTable:
    """Load some graphs of a data set into memory."""
    table = data.table
    return table.read(rows) if isinstance(table, OnDiskGraphs) else table.take(rows)


def _structure(graph: Graph) -> Structure:
    return Structure(graph.numbers, graph.positions, graph.cell, graph.pbc)


def _headline(values: dict[str, float | int | None], unit: str) -> str:
    """Most important figures of one split."""
    if not values["count"]:
        return "no known value"
    if "accuracy" not in values:
        decades = values.get("mae_log10")
        learnt = "" if decades is None else f" ({decades:.4g} in log10)"
        return f"MAE {values['mae']:.4g} {unit}".rstrip() + learnt
    named = {"accuracy": "accuracy", "F1": "f1", "AUC": "auc", "calibration error": "calibration"}
    known = [f"{n} {values[k]:.4g}" for n, k in named.items() if values[k] is not None]
    return ", ".join(known)


def _predict_properties(
    bounds: Batching,
    model: LoadedModel,
    data: LabelledGraphs,
    frame: pd.DataFrame,
    rows: np.ndarray,
) -> tuple[pd.DataFrame, Mapping[str, np.ndarray]]:
    """Predict scalars as a table, and values of heads by name."""
    found = predict_all(
        model,
        data.table,
        rows,
        bounds,
        global_features=data.global_features,
        choice=data.choice,
    )
    names = model.card.scalars
    table = frame[[*DESCRIPTION, *names]].copy()
    if model.card.columns != names:  # several classes
        table[f"{names[0]}_predicted"] = found.scalars.argmax(axis=1)
        columns = dict(zip(model.card.columns, found.scalars.T, strict=True))
        return table.assign(**columns), {}
    for column, name in enumerate(names):
        table[f"{name}_predicted"] = found.scalars[:, column]
    return table, found.heads


def _evaluate_potential(
    bounds: Batching,
    model: LoadedModel,
    data: LabelledGraphs,
    frame: pd.DataFrame,
    rows: np.ndarray,
) -> tuple[pd.DataFrame, Mapping[str, np.ndarray]]:
    """Predict energies as a table, and targets beyond scalars per structure by name."""
    parts = [
        evaluate_table(
            model,
            _graphs_of(data, rows[start : start + BLOCK]),
            forces="forces" in data.arrays,
            stress="stress" in data.arrays,
            bounds=bounds,
        )
        for start in range(0, len(rows), BLOCK)
    ]
    table, energy = frame[DESCRIPTION].copy(), np.concatenate([part.energy for part in parts])
    atoms = frame["n_atoms"].to_numpy()
    for name, values in (("", data.targets[rows, 0]), ("_predicted", energy)):
        table[f"energy{name}"] = values
        table[f"energy_per_atom{name}"] = values / atoms
    answers = [{"forces": part.forces, "stress": part.stress, **part.heads} for part in parts]
    return table, {
        name: np.concatenate([answer[name] for answer in answers]) for name in data.arrays
    }


def _array_tables(
    config: Config,
    data: LabelledGraphs,
    frame: pd.DataFrame,
    rows: np.ndarray,
    predicted: Mapping[str, np.ndarray],
) -> dict[str, pd.DataFrame]:
    """Tables of the targets beyond scalars per structure.

    Args:
        config: the whole config.
        data: the labelled graphs.
        frame: [D] rows of the data set.
        rows: [D], their rows of `data.table`.
        predicted: predictions by name, in the order of `rows`.
    """
    atoms = atoms_of(data.table.node_ptr, rows)
    tables = {}
    for spec in array_targets(config):
        wanted, found = data.arrays[spec.name], predicted[spec.name]
        if spec.per == "atom":
            own, wanted = _frame_of_atoms(data, frame, rows, atoms), wanted[atoms]
        else:
            own, wanted = frame[DESCRIPTION], wanted[rows]
        tables[spec.name] = _components(own, spec, wanted, found)
    return tables


def _frame_of_atoms(
    data: LabelledGraphs, frame: pd.DataFrame, rows: np.ndarray, atoms: np.ndarray
) -> pd.DataFrame:
    """Frame with one row per atom: its structure, element and index there."""
    counts = np.diff(data.table.node_ptr)[rows]
    structure = np.repeat(np.arange(len(rows)), counts)
    own = frame[DESCRIPTION].iloc[structure].reset_index(drop=True)
    own["elements"] = np.array(SYMBOLS, dtype=object)[data.table.numbers[atoms]]
    own["atom"] = np.arange(len(structure)) - (np.cumsum(counts) - counts)[structure]
    return own


def _components(
    own: pd.DataFrame, spec: TargetSpec, wanted: np.ndarray, predicted: np.ndarray
) -> pd.DataFrame:
    """Table with one row per known number; `component` is the index in a value."""
    order = list(spec.flat) or slice(None)
    wanted, predicted = (values.reshape(len(own), -1)[:, order] for values in (wanted, predicted))
    count = wanted.shape[1]
    table = own.iloc[np.repeat(np.arange(len(own)), count)].reset_index(drop=True)
    if spec.components:
        table["component"] = np.tile(np.arange(count, dtype=np.int8), len(own))
    table[spec.name], table[f"{spec.name}_predicted"] = wanted.reshape(-1), predicted.reshape(-1)
    return table[np.isfinite(table[spec.name])].reset_index(drop=True)
