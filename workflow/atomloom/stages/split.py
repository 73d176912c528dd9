"""Stage `split`: join labels to structures and divide them into training, validation and test.

It depends on structures, labels and the split's options, not on graphs: a new cutoff does not affect it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.config import Config
from atomloom.data.duplicates import find_duplicates
from atomloom.data.splits import divide, torn_groups
from atomloom.errors import AtomloomError, again
from atomloom.pipeline.paths import RunPaths
from atomloom.pipeline.quarantine import QUARANTINE, Quarantine
from atomloom.stages.convert import ConvertedChunk
from atomloom.stages.features import features_of_chunk
from atomloom.stages.labels import OWN, TEXT, array_targets
from atomloom.stages.plan import read_members, read_planned_labels
from atomloom.stages.target_arrays import (
    ChunkArrays,
    holds,
    labelled_chunks,
    values_in,
    write_target_arrays,
)
from atomloom.store.files import file_digest, read_json, write_atomically, write_sealed, write_spec
from atomloom.store.parquet import read_table, write_table
from atomloom.structures.checks import TOO_VAST
from atomloom.structures.composition import elements_text, reduced_formula
from atomloom.structures.vacuum import VACUUM, isolated_atoms
from atomloom.targets import TargetSpec

SAME_ENERGY = 1e-4
"""Max difference in eV between energies of isolated atoms that count as equal."""


@dataclass(frozen=True)
class Records:
    """Structures of all chunks, in the order of the plan."""

    frame: pd.DataFrame
    chunks: list[ConvertedChunk]
    features: tuple[str, ...] = ()
    """Columns of the frame that are derived features."""


def write_split(paths: RunPaths, log: Callable[[str], None]) -> Path:
    """Write `dataset.parquet`, `split.json`, `quarantine.csv`, `duplicates.csv`; return their folder.

    Columns of `dataset.parquet`: record (row of the plan), id, hash, split (train, val, test, or the name of
    a test set), one column per target, global feature and derived feature, formula, elements (`Na,Cl`), n_atoms, and `text:NAME` where
    `split.group` is a column NAME. A target with more than a scalar per structure is not a column:
    its values go to a separate file.

    Raises:
        AtomloomError: when a target or column is missing, too much is in quarantine, a split would
            be empty, or duplicates were found where `split.duplicates` is `stop`.
    """
    layout, plan, config = paths.layout, paths.plan, paths.config
    members, labels = read_members(layout, plan), read_planned_labels(layout, plan)
    quarantine = Quarantine.of(members)
    records = read_structures(paths, members, quarantine)
    folder, max_fraction = paths.split, config.dataset.checks.max_fraction
    if len(quarantine) == plan.records:  # reported first, rather than that no record has the target
        quarantine.close(folder, max_fraction)
    frame = join_targets(config, records, labels, quarantine, log)
    quarantine.close(folder, max_fraction)

    if config.uses_isolated_atoms and (vast := quarantine.count(TOO_VAST)):
        log(
            f"{vast:,} records are in quarantine for their volume per atom: if they are isolated atoms in a box, "
            "dataset.options `box: molecule` reads them as such"
        )
    frame, isolated = _without_isolated_atoms(config, records, frame, log)
    columns = _columns_for_split(config, frame, labels)
    frame["split"] = divide(config.split, frame, columns, plan.records)
    if config.split.group and (torn := torn_groups(columns[config.split.group], frame["split"])):
        log(
            f"warning: {len(torn):,} groups of `{config.split.group}` are both in the test set and "
            f"outside it, by {'split.test' if config.split.test else f'split.kind: {config.split.kind}'} "
            f"(first: {torn[0]})"
        )
    if config.split.group not in (None, "formula"):
        frame[f"{TEXT}{config.split.group}"] = columns[config.split.group].to_numpy()
    duplicates = find_duplicates(records.chunks, frame, config.split.duplicate_tolerance)
    write_atomically(folder / "duplicates.csv", lambda path: duplicates.to_csv(path, index=False))
    if len(duplicates) and config.split.duplicates == "stop":
        first = duplicates.iloc[0]
        raise AtomloomError(
            f"{_told(duplicates, frame)} (first: {first['id']} in {first['split']} and "
            f"{first['other_id']} in {first['other_split']})",
            where=folder / "duplicates.csv",
            todo="split.duplicates: remove drops them from training and validation",
        )
    removed = duplicates if config.split.duplicates == "remove" else duplicates[:0]
    for row in removed.itertuples():
        quarantine.add(
            row.record,
            f"{row.kind} duplicate of a structure of the {row.other_split} split; {row.other_id}",
        )
    refused, told = len(quarantine) - len(removed), _told(duplicates, frame)
    quarantine.write(folder / QUARANTINE)
    frame = frame[~frame["record"].isin(removed["record"])]
    counts = {name: int((frame["split"] == name).sum()) for name in config.split.names}
    named = {name: counts.pop(name) for name in config.split.test}
    _require_rows(config, counts, removed, folder)
    known = _known_values(config, frame)
    _require_values(known)
    _require_references(config, frame)
    frame = frame.drop(columns="source")  # the location of files is not part of the data set
    write_table(folder / "dataset.parquet", frame)
    arrays = array_targets(config)
    chunks = zip(plan.chunks, records.chunks, strict=True)
    parts = [ChunkArrays.of(chunk.first, converted, arrays) for chunk, converted in chunks]
    write_target_arrays(paths, arrays, parts)
    write_spec(folder, paths.dataset_spec)
    write_sealed(
        folder / "split.json",
        {
            "dataset_key": paths.dataset_key,
            "records": plan.records,
            "used": len(frame),
            "quarantined": refused,
            **counts,
            **({"test_sets": named} if named else {}),
            **isolated,
            "duplicates": len(duplicates),
            "removed_as_duplicates": len(removed),
            "labels_without_record": plan.labels_without_record,
            "known": known,
            **({"features": list(records.features)} if records.features else {}),
            "digests": {QUARANTINE: file_digest(folder / QUARANTINE)},
        },
    )
    for target, values in known.items():
        if (some := sum(values.values())) < len(frame):
            log(f"{some:,} of {len(frame):,} structures have a value of {target}")
    log(
        f"{', '.join(f'{count:,} {name}' for name, count in (counts | named).items())}; "
        f"{refused:,} in quarantine; {told}{', removed' if len(removed) else ''}"
    )
    return folder


def _without_isolated_atoms(
    config: Config, records: Records, frame: pd.DataFrame, log: Callable[[str], None]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Set frames of isolated atoms aside, if the config takes their energies as references.

    Returns:
        The other rows, and for `split.json` the number of frames and the energies by element.

    Raises:
        AtomloomError: when there is none, or two of an element have different energies.
    """
    if not any(spec.of_energy for spec in config.targets):
        return frame, {}
    alone = are_isolated_atoms(records, frame)
    known = frame[alone & frame["energy"].notna().to_numpy()]
    where = "training.potential.reference_energies"
    if not config.uses_isolated_atoms:
        if len(known) and config.training.potential.reference_energies == "fit":
            log(
                f"isolated atoms among the structures: {len(known):,}, trained on like any other; "
                f"{where}: isolated_atoms takes their energies as references"
            )
        return frame, {}
    if known.empty:
        raise AtomloomError(
            f"no frame with an energy is an isolated atom: a single atom, at least {VACUUM:g} A "
            "from its images, if any",
            where=where,
            todo="say `fit`, or give the energies",
        )
    energies: dict[str, float] = {}
    for element, rows in known.groupby("elements", sort=True):
        first, lowest, highest = rows["energy"].iloc[0], rows["energy"].min(), rows["energy"].max()
        if highest - lowest > SAME_ENERGY:
            ids = [
                rows["id"].iloc[int(np.argmin(rows["energy"]))],
                rows["id"].iloc[int(np.argmax(rows["energy"]))],
            ]
            raise AtomloomError(
                f"isolated atoms of {element} have different energies: {lowest:.10g} eV in {ids[0]} and "
                f"{highest:.10g} eV in {ids[1]}",
                where=where,
                todo="leave one out, or give the energies",
            )
        energies[str(element)] = float(first)
    told = ", ".join(f"{element} {energy:.6g}" for element, energy in energies.items())
    log(f"isolated atoms: {int(alone.sum()):,}, not trained on; reference energies (eV): {told}")
    aside = {"isolated_frames": int(alone.sum()), "isolated_atoms": energies}
    return frame[~alone].reset_index(drop=True), aside


def are_isolated_atoms(records: Records, frame: pd.DataFrame) -> np.ndarray:
    """[rows] bool, whether the structures of a frame are isolated atoms."""
    alone = np.zeros(len(frame), dtype=bool)
    for number, places in frame.groupby("chunk").indices.items():
        table = records.chunks[int(number)].table
        alone[places] = isolated_atoms(table)[frame["row"].to_numpy(np.int64)[places]]
    return alone


def _told(duplicates: pd.DataFrame, frame: pd.DataFrame) -> str:
    """Number of training and validation rows that are duplicates, in words."""
    near = int((duplicates["kind"] == "near").sum())
    of = int(frame["split"].isin(("train", "val")).sum())
    return (
        f"{len(duplicates):,} of {of:,} training and validation rows are duplicates across splits "
        f"({len(duplicates) - near:,} exact, {near:,} near)"
    )


def _require_rows(
    config: Config, counts: dict[str, int], removed: pd.DataFrame, folder: Path
) -> None:
    """Refuse a split without training rows, or without the validation rows that it should have.

    Raises:
        AtomloomError: saying whether the leak guard removed them.
    """
    for split, name in (("train", "training"), ("val", "validation")):
        if counts[split] or (split == "val" and not config.split.validation):
            continue
        gone = int((removed["split"] == split).sum())
        if gone:
            raise AtomloomError(
                f"no structure is left for {name}: all {gone:,} were removed as duplicates of "
                f"structures of {'a split nearer to the test' if split == 'train' else 'the test'}",
                where=folder / "duplicates.csv",
                todo="split.duplicates: report keeps them, split.group keeps similar ones together",
            )
        raise AtomloomError(
            f"no structure is left for {name}",
            where="split",
            todo="fewer split.val_folds"
            if config.split.val_folds
            else "change split.ratios or split.val_fraction",
        )


def _known_values(config: Config, frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Number of structures in each split with a value of each target that is a scalar per structure."""
    return {
        target: {
            name: int(frame.loc[frame["split"] == name, target].count())
            for name in config.split.names
        }
        for target in config.dataset.target
        if target in frame
    }


def _require_values(known: dict[str, dict[str, int]]) -> None:
    """Refuse a target that no training structure has.

    Raises:
        AtomloomError: naming it.
    """
    for target, values in known.items():
        if not values["train"]:
            raise AtomloomError(
                f"no training structure has a value of {target}",
                where="split",
                todo="change the split, or leave the target out",
            )


def _require_references(config: Config, frame: pd.DataFrame) -> None:
    """Refuse structures with elements whose energies a potential cannot learn.

    Raises:
        AtomloomError: naming the first of them; training would say so only when all graphs are built.
    """
    if not any(spec.of_energy for spec in config.targets):
        return
    given = config.training.potential.reference_energies
    learnt = frame[(frame["split"] == "train") & frame["energy"].notna()]
    known = set(given) if isinstance(given, dict) else _elements(learnt["elements"])
    unknown = frame[frame["elements"].map(lambda text: not known.issuperset(text.split(",")))]
    if unknown.empty:
        return
    symbols = ", ".join(sorted(_elements(unknown["elements"]) - known))
    splits = ", ".join(
        f"{count:,} of {name}" for name, count in unknown["split"].value_counts().items()
    )
    first = unknown["id"].iloc[0]
    if isinstance(given, dict):
        raise AtomloomError(
            f"has no energy of {symbols}, needed by {splits} (first: {first})",
            where="training.potential.reference_energies",
            todo="give one for every element, or say `fit`",
        )
    raise AtomloomError(
        f"no training structure with an energy holds {symbols}: a potential could not predict {splits} "
        f"(first: {first})",
        where="split",
        todo="train on structures with every element, or leave those out",
    )


def _elements(column: pd.Series) -> set[str]:
    """All elements of some structures, given as `Na,Cl`."""
    return {symbol for text in column.unique() for symbol in text.split(",")}


def read_split(paths: RunPaths) -> dict[str, Any]:
    """Read `split.json`.

    Raises:
        AtomloomError: when it is missing or damaged.
    """
    return read_json(paths.split / "split.json", "digests", todo=again("split"))


def global_names(paths: RunPaths) -> list[str]:
    """Names of the model's global features: those of the data, then the columns of derived features.

    Raises:
        AtomloomError: when they are derived, and the split is missing or damaged.
    """
    derived = []
    if paths.config.features:
        path = paths.split / "split.json"
        derived = read_json(path, "features", todo=again("split"))["features"]
    return [*paths.config.dataset.global_features, *derived]


def read_structures(paths: RunPaths, members: pd.DataFrame, quarantine: Quarantine) -> Records:
    """Read the structures of all chunks; records without one are added to the quarantine."""
    parts: list[pd.DataFrame] = []
    chunks: list[ConvertedChunk] = []
    names: tuple[str, ...] = ()
    for chunk, converted, unlabelled in labelled_chunks(paths):
        for place, reason in converted.quarantine:
            quarantine.add(chunk.first + place, reason)
        for row, reason in unlabelled.items():
            quarantine.add(chunk.first + int(converted.record[row]), reason)
        table = converted.table
        described = features_of_chunk(paths.layout, chunk.key, table.hash)
        names = tuple(described.columns)
        for row, reason in described.reasons.items():
            quarantine.add(chunk.first + int(converted.record[row]), reason)
        records = chunk.first + converted.record.astype(np.int64)
        atoms = [
            table.numbers[a:b] for a, b in zip(table.node_ptr[:-1], table.node_ptr[1:], strict=True)
        ]
        parts.append(
            pd.DataFrame(
                {
                    "record": records,
                    "id": members["id"].to_numpy()[records],
                    "source": members["source"].to_numpy()[records],
                    "hash": [row.tobytes() for row in table.hash],
                    "formula": [reduced_formula(numbers) for numbers in atoms],
                    "elements": [elements_text(numbers) for numbers in atoms],
                    "n_atoms": np.diff(table.node_ptr).astype(np.int32),
                    "chunk": len(chunks),
                    "row": np.arange(len(table), dtype=np.int32),
                    **described.columns,
                }
            )
        )
        chunks.append(converted)
    return Records(pd.concat(parts, ignore_index=True), chunks, names)


def join_targets(
    config: Config,
    records: Records,
    labels: pd.DataFrame,
    quarantine: Quarantine,
    log: Callable[[str], None],
) -> pd.DataFrame:
    """Join targets and global features to the structures that have at least one target and all global
    features; the others go to quarantine.

    Forces and stress are not columns, and may be unknown.
    """
    frame = records.frame
    specs = array_targets(config)
    for spec in specs:
        _require_array(records, spec)
    arrays = [spec.name for spec in specs]
    own = labels.iloc[frame["record"]].reset_index(drop=True)
    problem = own["problem"].to_numpy(dtype=object).copy()
    targets = [name for name in config.dataset.target if name not in arrays]
    for name in [*targets, *config.dataset.global_features]:
        if name in own:
            frame[name] = own[name].to_numpy()
            inside = _from_properties(records, name, asked=False)
            if others := int((~_agree(frame[name].to_numpy(), inside)).sum()):
                log(
                    f"{others:,} structures have another {name} than the label table, which takes precedence"
                )
        elif OWN + name in own:
            beside, inside = own[OWN + name].to_numpy(), _from_properties(records, name)
            for row in np.flatnonzero(~_agree(beside, inside)):
                reason = (
                    f"{name} is {beside[row]:g} alongside the structure and {inside[row]:g} in it"
                )
                problem[row] = problem[row] or reason
            frame[name] = np.where(np.isnan(beside), inside, beside)
        else:
            _require_property(records, name)
            frame[name] = _from_properties(records, name)
        for row in np.flatnonzero(np.isinf(frame[name])):
            reason = f"no label: {name} is {frame[name][row]}, not a finite number"
            problem[row] = problem[row] or reason
    unknown = np.all([frame[name].isna() for name in targets], axis=0)
    unknown &= ~_have_arrays(records, specs)
    wanted = [*targets, *arrays]
    problem[unknown & (problem == "")] = f"no label: the record has no {' and no '.join(wanted)}"
    for name in (*config.dataset.global_features, *records.features):
        problem[frame[name].isna() & (problem == "")] = f"no label: the record has no {name}"
    for record, reason in zip(frame["record"], problem, strict=True):
        if reason:
            quarantine.add(record, reason)
    return frame[problem == ""].reset_index(drop=True)


def _have_arrays(records: Records, specs: Sequence[TargetSpec]) -> np.ndarray:
    """[S] bool, whether a structure has known components of one of these targets."""
    parts = []
    for chunk in records.chunks:
        table = chunk.table
        known = [spec.known(values_in(table, spec), table.node_ptr) for spec in specs]
        parts.append(np.any([np.zeros(len(table), dtype=bool), *known], axis=0))
    return np.concatenate(parts)


def _require_array(records: Records, spec: TargetSpec) -> None:
    """Refuse a target that no record has in its shape.

    Raises:
        AtomloomError: saying whether such a property exists at all.
    """
    _require_property(records, spec.name)
    if not any(holds(chunk.table, spec) for chunk in records.chunks):
        shape = f"{' x '.join(map(str, spec.shape))} numbers" if spec.shape else "a number"
        raise AtomloomError(
            f"no record has `{spec.name}` as {shape} per {spec.per}", where="dataset.target"
        )


def _agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[S] bool, whether two columns agree within rounding, or one of them has no value."""
    return np.isnan(a) | np.isnan(b) | np.isclose(a, b, rtol=1e-6, atol=1e-9)


def _from_properties(records: Records, target: str, asked: bool = True) -> np.ndarray:
    """[S] scalar property of the structures' own records, NaN where missing.

    Raises:
        AtomloomError: when it is requested and not a scalar per structure.
    """
    parts = []
    for chunk in records.chunks:
        none = np.full(len(chunk.table), np.nan)
        values = chunk.table.properties.get(target, none)
        if values.ndim != 1 or target in chunk.table.per_atom:
            if not asked:
                parts.append(none)
                continue
            raise AtomloomError(f"`{target}` is not a scalar per structure", where="dataset.target")
        parts.append(values)
    return np.concatenate(parts)


def _require_property(records: Records, target: str) -> None:
    known = sorted({name for chunk in records.chunks for name in chunk.table.properties})
    if target not in known:
        raise AtomloomError(
            f"no record has a property `{target}`",
            where="dataset.target",
            todo=f"properties found: {', '.join(known) or 'none'}; or name a label table",
        )


def _columns_for_split(config: Config, frame: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Text columns that the split's options name, for these structures."""
    own = labels.iloc[frame["record"]].reset_index(drop=True)
    texts = {name.removeprefix(TEXT): own[name] for name in own if name.startswith(TEXT)}
    return pd.DataFrame({"formula": frame["formula"], **texts})


def read_dataset(paths: RunPaths, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read the table of labelled and divided structures, or some of its columns.

    Raises:
        AtomloomError: when the table is missing or damaged.
    """
    return read_table(paths.split / "dataset.parquet", columns, todo=again("split"))
