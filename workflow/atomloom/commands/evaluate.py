"""Command `evaluate --model`: predictions of a model file compared with the labels of new data.

Records and labels are read as for a data set, by the same stages in a temporary folder, so that they mean
the same; nothing is trained and nothing but the output is kept.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.commands.predict import as_called
from atomloom.config import Config, parse_config
from atomloom.data.dataset import LabelledGraphs
from atomloom.errors import AtomloomError
from atomloom.features.computing import trusted_feature
from atomloom.graphs.build import build_graphs
from atomloom.inference.model_file import ModelCard
from atomloom.inference.predict import LoadedModel, atoms_of, load_model, unfit
from atomloom.inference.scalers.target_scaler import TargetScaler, not_classes
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.quarantine import QUARANTINE, Quarantine, reason_kind
from atomloom.stages.convert import convert_chunk
from atomloom.stages.evaluate import guesses, metrics_of, predicted_tables, reported_units
from atomloom.stages.features import describe_chunk
from atomloom.stages.labels import array_targets
from atomloom.stages.plan import absent_targets, make_plan, read_members, read_planned_labels
from atomloom.stages.split import Records, are_isolated_atoms, join_targets, read_structures
from atomloom.stages.target_arrays import values_in
from atomloom.store.files import write_text
from atomloom.store.parquet import write_table
from atomloom.structures.table import StructureTable
from atomloom.structures.units import unit_factor

BLOCK_ATOMS = 50_000
"""Approximate max number of atoms whose graphs are in memory at a time."""
QUANTITIES = ((1, 0), (1, -1), (1, -3), (0, 1))
"""Powers of energy and length in units that can be converted."""
SHOWN_REASONS = 3
UNEXPLAINED = 0.05
"""Max share of squared labels that a factor may leave, if it is taken for that of a unit."""
FAR = 20.0
"""Factor, or its inverse, that even a poor model hardly has in the right unit: predictions need only agree with the
labels beyond chance."""
FEW = 10
"""Min number of labels from which a wrong unit is suspected."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """Request for errors of a model on labelled data."""

    model: Path
    """The model file."""
    sources: tuple[str, ...]
    """Files, folders or archives with structures."""
    labels: tuple[str, ...] = ()
    """Label tables; labels are otherwise looked for in the records."""
    id_column: str | int = 0
    """Column of the label tables that holds ids."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Target of the model -> its name in the data, where that is another."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Target of the model -> the unit of its labels, where that is another."""
    output: Path | None = None
    """Table of labels and predictions, .parquet or .csv; further tables are next to it."""
    format: str = "auto"
    pattern: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the readers."""
    bounds: Mapping[str, int] = field(default_factory=dict)
    """Max structures, atoms and edges per batch."""
    trust: tuple[str, ...] = ()
    """Modules or packages that the model file may name for its network."""


@dataclass(frozen=True)
class Compared:
    """Errors of a model on labelled data."""

    metrics: Mapping[str, Mapping[str, Mapping[str, float | int | None]]]
    """Metrics in the form of those of a run, with all structures as the split `test`."""
    units: Mapping[str, str]
    """Units by target."""

    def lines(self) -> list[str]:
        """Metrics as a table of text, one line per target."""
        names = dict.fromkeys(name for own in self.metrics.values() for name in own["test"])
        rows = [["target", "unit", *names]]
        for target, own in self.metrics.items():
            values = [own["test"].get(name) for name in names]
            texts = ["-" if value is None else f"{value:.6g}" for value in values]
            rows.append([target, self.units[target] or "-", *texts])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
        return ["  ".join(row).rstrip() for row in cells]


def compare_with_labels(request: Comparison, log: Log) -> Compared:
    """Compare predictions with labels, and write the tables if an output is named.

    Raises:
        AtomloomError: when the model or the data cannot be read, no record has a label, or a name or unit makes
            no sense.
    """
    try:
        return _compare_with_labels(request, log)
    except AtomloomError as error:
        where, what, todo = map(as_called, (error.where, error.what, error.todo))
        raise AtomloomError(what, where=where, todo=todo) from None


def _compare_with_labels(request: Comparison, log: Log) -> Compared:
    if request.output is not None and request.output.suffix not in (".parquet", ".csv"):
        raise AtomloomError(
            "the output is a table: give a name that ends in .parquet or .csv", where=request.output
        )
    if request.output is not None:
        request.output.parent.mkdir(parents=True, exist_ok=True)
    model = load_model(request.model, request.trust)
    factors = _factors(request, model.card)
    with tempfile.TemporaryDirectory(prefix="atomloom-evaluate-") as folder:
        found = _Labelled.read(request, model.card, Path(folder), factors, log)
        tables = _predicted(model, found, log)
    units = reported_units(found.config)
    if not found.config.training.classes:
        for name in units:
            _suspect_unit(name, tables.get(name, tables["predictions"]), log)
    for name in found.config.training.log_targets:
        if low := int((tables["predictions"][name] <= 0).sum()):
            log(
                f"{low:,} labels of {name} are not positive: they are not in its errors of logarithms"
            )
    _write(request, tables, found.quarantine)
    return Compared(metrics_of(found.config, tables), units)


# --- what is asked ---


def _factors(request: Comparison, card: ModelCard) -> dict[str, float]:
    """Factors from the units of labels to those of the model, by target."""
    for option, names in (("--target", request.names), ("--unit", request.units)):
        for name in names:
            if name not in _comparable(card):
                raise AtomloomError(
                    f"the model does not predict {name}",
                    where=option,
                    todo=f"it predicts {', '.join(_comparable(card))}",
                )
    own = {spec.name: spec for spec in card.specs}
    for name in request.names:
        if name not in own or own[name].of_energy:
            raise AtomloomError(
                f"{name} of a potential is not a column with some name",
                where="--target",
                todo="--option energy_key=NAME (forces_key, stress_key) says where it is in an extxyz",
            )
    factors = {}
    for name, unit in request.units.items():
        wanted = own[name].unit if name in own else _DERIVED_UNITS[name]
        factors[name] = 1.0 if unit == wanted else _factor(name, unit, wanted)
    return factors


_DERIVED_UNITS = {"forces": "eV/A", "stress": "eV/A^3"}


def _factor(name: str, unit: str, wanted: str) -> float:
    for powers in QUANTITIES:
        given, own = unit_factor(unit, *powers), unit_factor(wanted, *powers)
        if given is not None and own is not None:
            return given / own
    raise AtomloomError(
        f"labels of {name} in `{unit}` cannot be converted to {f'`{wanted}`' if wanted else 'no unit'}, "
        "the unit of the model",
        where="--unit",
        todo="convert them in the data",
    )


def _comparable(card: ModelCard) -> list[str]:
    """Targets of a model, and the derivatives that every potential has."""
    derived = list(_DERIVED_UNITS) if card.is_potential else []
    return list(dict.fromkeys([*card.targets, *derived]))


def _config(request: Comparison, card: ModelCard, folder: Path, targets: list[str]) -> Config:
    """Config by which labels are read; names are those of the data.

    Args:
        request: what is asked.
        card: of the model.
        folder: for the files of the stages.
        targets: of the model that are compared.
    """
    called = {name: request.names.get(name, name) for name in targets}
    kinds = {called[s.name]: s.kind for s in card.specs if s.name in called and not s.of_energy}
    dataset: dict[str, Any] = {
        "name": "evaluated",
        "source": list(request.sources),
        "format": request.format,
        "pattern": request.pattern,
        "options": dict(request.options),
        "target": list(called.values()),
        "target_kinds": kinds,
        "checks": {**card.checks.model_dump(mode="json"), "max_fraction": 1.0},
        "unit": {called[s.name]: s.unit for s in card.specs if s.name in called},
    }
    if card.global_features is not None:
        dataset["global_features"] = list(card.told)
    features = {
        name: trusted_feature(name, one, request.trust).model_dump(mode="json")
        for name, one in card.features.items()
    }
    if request.labels:
        dataset["labels"] = [{"file": f, "id_column": request.id_column} for f in request.labels]
    training: dict[str, Any] = {"batch": dict(request.bounds)}
    if isinstance(card.scaler, TargetScaler):
        if card.scaler.classes:
            training["loss"] = "cross_entropy" if card.scaler.class_count else "bce"
        logs = [n for n, log in zip(card.scalars, card.scaler.log, strict=True) if log]
        training["log_targets"] = [called[name] for name in logs if name in called]
    content = {
        "dataset": dataset,
        "model": card.model.model_dump(mode="json"),
        "graph": card.graph.model_dump(mode="json"),
        "training": training,
        "features": features,
        "paths": {"results": str(folder / "results"), "store": str(folder / "store")},
    }
    return parse_config(content, where="evaluate")


# --- labels ---


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Structures with labels, in the units of the model and under its names."""

    config: Config
    """Config whose targets are those that are compared, under the model's names."""
    records: Records
    frame: pd.DataFrame
    """Labelled structures: columns of `dataset.parquet`, all in the split `test`."""
    names: dict[str, str]
    """Target of the model -> its name in the data."""
    factors: Mapping[str, float]
    quarantine: Quarantine

    @classmethod
    def read(
        cls,
        request: Comparison,
        card: ModelCard,
        folder: Path,
        factors: Mapping[str, float],
        log: Log,
    ) -> _Labelled:
        """Read structures and labels, and say what cannot be compared."""
        targets = _comparable(card)
        own = {request.names.get(name, name): name for name in targets}
        absent = absent_targets(Layout(_config(request, card, folder, targets)))
        kept = [n for n in targets if request.names.get(n, n) not in absent or n in request.names]
        if not kept or (card.is_potential and "energy" not in kept):
            kept = targets  # make_plan says what is missing, and what there is
        else:
            for name in (own[name] for name in absent if own[name] not in kept):
                if name in card.targets:
                    log(f"no record has {name}: it is not compared")
        reading = _config(request, card, folder, kept)
        layout = Layout(reading)
        plan = make_plan(layout, _quiet)
        for key in plan.chunk_keys:
            convert_chunk(layout, plan, key, _quiet)
            if reading.features:
                describe_chunk(layout, key, _quiet)
        members, labels = read_members(layout, plan), read_planned_labels(layout, plan)
        quarantine = Quarantine.of(members)
        records = read_structures(RunPaths(layout, plan), members, quarantine)
        _require_some(quarantine)
        frame = join_targets(reading, records, labels, quarantine, log)
        _require_some(quarantine)
        if "reference_energies" in card.facts:
            frame = _without_isolated_atoms(records, frame, log)
        names = {name: request.names.get(name, name) for name in kept}
        frame = frame.rename(columns={there: here for here, there in names.items()})
        for name in card.scalars:  # a property model predicts all of its targets
            frame[name] = frame.get(name, np.nan) * factors.get(name, 1.0)
        _require_classes(card, frame, names)
        plain = Comparison(request.model, request.sources, bounds=request.bounds)
        config = _config(plain, card, folder, kept)
        return cls(config, records, frame.assign(split="test"), names, factors, quarantine)

    def blocks(self) -> Iterator[tuple[pd.DataFrame, StructureTable]]:
        """Iterate over rows of the frame with the chunk that holds their structures."""
        for chunk, rows in self.frame.groupby("chunk", sort=True):
            table = self.records.chunks[int(chunk)].table
            for _, part in rows.groupby(np.cumsum(rows["n_atoms"]) // BLOCK_ATOMS):
                yield part, table

    def data(self, frame: pd.DataFrame, table: StructureTable, card: ModelCard) -> LabelledGraphs:
        """Graphs and labels of some rows of the frame, whose structures are in `table`.

        Raises:
            AtomloomError: when one of them cannot have a graph.
        """
        specs, rows = array_targets(self.config), frame["row"].to_numpy(np.int64)
        atoms = atoms_of(table.node_ptr, rows)
        arrays = {}
        for spec in specs:
            values = values_in(table, type(spec)(self.names[spec.name]))
            own = values[atoms if spec.per == "atom" else rows]
            arrays[spec.name] = own * self.factors.get(spec.name, 1.0)
        columns = [spec.name for spec in self.config.targets if spec.is_column]
        given = list(card.global_features.names) if card.global_features else []
        return LabelledGraphs(
            table=build_graphs(table.take(rows), card.graph),
            targets=frame[columns].to_numpy(np.float64),
            rows={},
            arrays=arrays,
            specs=specs,
            global_features=frame[given].to_numpy(np.float64) if given else None,
        )


def _without_isolated_atoms(records: Records, frame: pd.DataFrame, log: Log) -> pd.DataFrame:
    """Set frames of isolated atoms aside, as in training, where their energies are the model's references."""
    alone = are_isolated_atoms(records, frame)
    if alone.all():
        raise AtomloomError(
            "all structures are isolated atoms, whose energies are references of the model and not compared",
            where="--source",
        )
    if alone.any():
        log(f"isolated atoms: {int(alone.sum()):,}, reference energies of the model: not compared")
    return frame[~alone].reset_index(drop=True)


def _require_classes(card: ModelCard, frame: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Refuse labels that are no classes of a model of classes.

    Args:
        card: of the model.
        frame: labels under the names of the model.
        names: target of the model -> its name in the data.
    """
    if not isinstance(card.scaler, TargetScaler) or not card.scaler.classes:
        return
    count = card.scaler.class_count or 2
    other = not_classes(frame[list(card.scalars)].to_numpy(np.float64), count)
    for row, column in np.argwhere(other)[:1]:
        name, told = card.scalars[column], "0 or 1" if count == 2 else f"0 to {count - 1}"
        raise AtomloomError(
            f"{names.get(name, name)} of {frame['id'].iloc[row]} is {frame[name].iloc[row]:g}, "
            f"not a class of the model ({told})",
            where=frame["source"].iloc[row],
            todo="number classes as those that the model was trained on",
        )


def _quiet(message: str) -> None:
    """Take no notice: stages in a temporary folder say nothing of use."""


def _require_some(quarantine: Quarantine) -> None:
    if len(quarantine) == len(quarantine.ids):
        first = quarantine.frame().iloc[0]
        raise AtomloomError(
            f"not one of {len(quarantine):,} records can be compared (first: {first['id']}, {first['reason']})",
            where=first["source"],
        )


# --- predictions ---


def _predicted(model: LoadedModel, found: _Labelled, log: Log) -> dict[str, pd.DataFrame]:
    """Tables of labels and predictions; structures that have none are added to the quarantine."""
    parts = [part for rows in found.blocks() for part in _predict_block(model, found, *rows)]
    _require_some(found.quarantine)
    tables = {name: pd.concat([p[name] for p in parts], ignore_index=True) for name in parts[0]}
    predictions, refused = tables["predictions"], found.quarantine.frame()
    log(f"{len(predictions):,} structures compared, {len(refused):,} records in quarantine")
    kinds = [reason_kind(row.reason, names=(row.source, row.id)) for row in refused.itertuples()]
    for kind, count in Counter(kinds).most_common(SHOWN_REASONS):
        first = refused.iloc[kinds.index(kind)]
        log(f"{count:,} of them like {first['id']}: {first['reason']}")
    if warning := guesses(model.card.elements, predictions["elements"]):
        log(warning)
    return tables


def _predict_block(
    model: LoadedModel, found: _Labelled, frame: pd.DataFrame, table: StructureTable
) -> list[dict[str, pd.DataFrame]]:
    """Tables of some structures, in parts; those that cannot be predicted are added to the quarantine."""

    def predict(rows: np.ndarray) -> dict[str, pd.DataFrame]:
        own = frame.iloc[rows].reset_index(drop=True)
        data = found.data(own, table, model.card)
        return predicted_tables(found.config, model, data, own, np.arange(len(own)))

    reasons = [unfit(model.card.graph, table[row]) for row in frame["row"]]
    for row in np.flatnonzero(reasons):
        found.quarantine.add(frame["record"].iloc[row], reasons[row])
    rows = np.flatnonzero([not reason for reason in reasons])
    if not len(rows):
        return []
    try:
        return [predict(rows)]
    except AtomloomError:
        pass  # at least one cannot be predicted: find it by trying one by one
    parts = []
    for row in rows:
        try:
            parts.append(predict(np.array([row])))
        except AtomloomError as error:
            found.quarantine.add(frame["record"].iloc[row], error.what)
    return parts


def _suspect_unit(name: str, table: pd.DataFrame, log: Log) -> None:
    """Warn if labels are a multiple of the predictions."""
    both = table[[name, f"{name}_predicted"]].dropna().to_numpy(np.float64)
    labels, predicted = both.T
    product, square = float(labels @ predicted), float(predicted @ predicted)
    if len(both) < FEW or product <= 0:
        return
    factor, explained = product / square, product**2 / (square * float(labels @ labels))
    sure = explained > 1 - UNEXPLAINED and not 0.5 <= factor <= 2
    far = explained > max(0.25, 9 / len(both)) and not 1 / FAR < factor < FAR
    if sure or far:
        log(
            f"warning: labels of {name} are {factor:.4g} times the predictions{' throughout' if sure else ', roughly'}: "
            "if they are in another unit, name it with --unit"
        )


# --- output ---


def _write(request: Comparison, tables: Mapping[str, pd.DataFrame], quarantine: Quarantine) -> None:
    """Write the table of structures, those of further targets and the quarantine next to it."""
    output = request.output
    if output is None:
        return
    quarantine.write(output.with_name(f"{output.stem}.{QUARANTINE}"))
    for name, table in [*tables.items()][::-1]:  # that of the structures is written last
        own = (
            output
            if name == "predictions"
            else output.with_name(f"{output.stem}.{name}{output.suffix}")
        )
        table = table.drop(columns="split")
        if own.suffix == ".parquet":
            write_table(own, table)
        else:
            write_text(own, table.to_csv(index=False))
