"""Stacks of runs: one model of several finished runs, weighted by their errors on held-out rows.

Runs that differ only in their seed and their validation fold are one kind, which counts by the mean of its members.
A row of which a kind has held out is predicted by the members that had it for validation: with all folds of
`split.val_folds` these are predictions out of fold for every row outside the test set.

Legend: R rows, M kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.errors import AtomloomError, again
from atomloom.pipeline.run_card import CARD, require_result
from atomloom.pipeline.runs import short_name
from atomloom.reports.formats import plural
from atomloom.store.files import file_digest, read_json, write_json
from atomloom.store.keys import short_hash
from atomloom.store.parquet import read_table, write_table

Log = Callable[[str], None]
FEWEST = 10
"""Min number of rows that weights are fitted to."""
WITHIN = 0.6827
"""Share of errors within the error bar, as of normal errors within one deviation."""
TABLE = "predictions.parquet"
ALIKE = (("training", "seed"), ("split", "val_fold"))
"""Keys in which runs of one kind may differ."""


@dataclass(frozen=True, eq=False)
class Run:
    """Finished run of a model of properties."""

    folder: Path
    card: Mapping[str, Any]
    table: pd.DataFrame
    """Its predictions, one row per id."""

    @property
    def name(self) -> str:
        """Short name."""
        return short_name(self.folder.name)

    @property
    def kind(self) -> str:
        """Digest of the config, without what runs of one kind may differ in."""
        config = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in self.card["config"].items()
            if name not in ("paths", "sweep", "published")
        }
        for section, key in ALIKE:
            config[section].pop(key, None)
        return short_hash(config)


@dataclass(frozen=True, eq=False)
class Kind:
    """Runs that differ in seed and fold alone."""

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """Name of its model, with that of its first run."""
        return f"{self.runs[0].card['config']['model']['name']} ({self.runs[0].name})"

    def rows(self, target: str, split: str) -> pd.Series:
        """Predictions by id: for `val` by the members that had the row held out, else, by all members."""
        column = f"{target}_predicted"
        tables = [run.table for run in self.runs]
        if split == "val":
            parts = [table.loc[table["split"] == "val", column] for table in tables]
        else:
            held = [set(table.index[~table["split"].isin(("train", "val"))]) for table in tables]
            common = sorted(set.intersection(*held))
            parts = [table.loc[common, column] for table in tables]
        joined = pd.concat(parts)
        return joined.groupby(level=0, sort=True).mean()


def stack_runs(folders: Sequence[Path], output: Path, fit: bool, log: Log) -> dict[str, Any]:
    """Write a stack of runs to `output`, its predictions to `NAME.predictions.parquet` and its errors to `NAME.json`.

    Args:
        folders: of the runs.
        output: the file of the stack.
        fit: whether weights are fitted; else they are equal.
        log: takes one line at a time.

    Returns:
        The content of `NAME.json`.

    Raises:
        AtomloomError: when a run is not finished or of another kind of target, runs contradict each other, or too few
            rows are held out.
    """
    from atomloom.inference.stack import write_stack

    if output.suffix != ".safetensors":
        raise AtomloomError("a stack is a file NAME.safetensors", where=output)
    kinds = _kinds([_read(folder) for folder in dict.fromkeys(folders)])
    first = kinds[0].runs[0].card
    targets, units = list(first["config"]["dataset"]["target"]), _units(first)
    _require_one_test_set(kinds)
    combinations, tables, errors = {}, [], {}
    for target in targets:
        labels = _labels(kinds, target)
        held, test = (_joined(kinds, target, split, labels) for split in ("val", "test"))
        if len(held) < max(FEWEST, 3 * len(kinds)):
            raise AtomloomError(
                f"only {plural(len(held), 'validation row')} of {target} common to all kinds of runs",
                todo="stack runs of one split, or of all folds of split.val_folds",
            )
        found = _combination(held, fit)
        combinations[target] = found
        own = {"val": held, "test": test}
        errors[target] = _errors(kinds, found, own)
        tables.append(_table(target, found, own))
        _tell(target, units[target], kinds, found.weights, errors[target], log)
    # Kinds of no weight would only take time.
    used = [p for p in range(len(kinds)) if any(c.weights[p] for c in combinations.values())]
    members = [
        (kinds[p].name, [run.folder / "model.safetensors" for run in kinds[p].runs]) for p in used
    ]
    runs = {kind.name: [run.folder.name for run in kind.runs] for kind in kinds}
    seconds = sum(run.card["seconds"] for kind in kinds for run in kind.runs)
    facts = {"runs": runs, "weighted_by": "fit" if fit else "mean", "seconds": seconds}
    kept = {name: one.of(used) for name, one in combinations.items()}
    write_stack(output, members, kept, units, facts)
    joined = tables[0]
    for table in tables[1:]:
        joined = joined.merge(table, on=["id", "split"], how="outer")
    write_table(output.with_name(f"{output.stem}.{TABLE}"), joined)
    content = {
        **facts,
        "units": units,
        "combinations": {
            name: {
                "weights": dict(zip(runs, one.weights, strict=True)),
                "floor": one.floor,
                "slope": one.slope,
            }
            for name, one in combinations.items()
        },
        "errors": errors,
        "stack": file_digest(output),
    }
    write_json(output.with_suffix(".json"), content)
    log(
        f"{plural(sum(len(kind.runs) for kind in kinds), 'run')} of {plural(len(kinds), 'kind')}: {output}"
    )
    return content


# --- runs ---


def _read(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        AtomloomError: when it is not finished, not of scalars, or damaged.
    """
    if not (folder / TABLE).exists() or not (folder / "model.safetensors").exists():
        raise AtomloomError("is not a finished run", where=folder, todo="train and evaluate it")
    card = read_json(folder / CARD, "config", "seconds", todo=again("train"))
    table = read_table(folder / TABLE, todo=again("evaluate"))
    require_result(card, folder / TABLE, again("evaluate"))
    config = card["config"]
    targets = config["dataset"]["target"]
    missing = [name for name in targets if f"{name}_predicted" not in table]
    if missing or config["training"]["loss"] in ("bce", "cross_entropy"):
        what = ", ".join(missing or targets)
        raise AtomloomError(f"predicts {what}; a stack is of numbers per structure", where=folder)
    return Run(folder, card, table[~table["id"].duplicated(keep=False)].set_index("id"))


def _units(card: Mapping[str, Any]) -> dict[str, str]:
    unit = card["config"]["dataset"]["unit"]
    targets = card["config"]["dataset"]["target"]
    return dict(unit) if isinstance(unit, Mapping) else dict.fromkeys(targets, unit)


def _kinds(runs: Sequence[Run]) -> list[Kind]:
    """Runs by kind, in the order in which kinds occur.

    Raises:
        AtomloomError: when there is one run only, or targets or units differ.
    """
    if len(runs) < 2:
        raise AtomloomError("a stack is of two runs or more", where="RUN")
    first = runs[0]
    for run in runs[1:]:
        own, wanted = (one.card["config"]["dataset"]["target"] for one in (run, first))
        if own != wanted or _units(run.card) != _units(first.card):
            raise AtomloomError(
                f"{run.name} predicts {', '.join(own)} ({', '.join(_units(run.card).values())}) and {first.name} "
                f"{', '.join(wanted)} ({', '.join(_units(first.card).values())})",
                where="RUN",
            )
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        kinds.setdefault(run.kind, []).append(run)
    return [Kind(tuple(members)) for members in kinds.values()]


def _require_one_test_set(kinds: Sequence[Kind]) -> None:
    """Raise AtomloomError if a test row of a run was seen in the training of another."""
    seen: dict[str, str] = {}
    for kind in kinds:
        for run in kind.runs:
            known = run.table.index[run.table["split"].isin(("train", "val"))]
            seen.update(dict.fromkeys(known, run.name))
    for kind in kinds:
        for run in kind.runs:
            test = run.table.index[~run.table["split"].isin(("train", "val"))]
            common = [name for name in test if name in seen]
            if common:
                raise AtomloomError(
                    f"{plural(len(common), 'test row')} of {run.name}, such as {common[0]}, had a part in the training "
                    f"of {seen[common[0]]}",
                    where="RUN",
                    todo="stack runs with one test set",
                )


def _labels(kinds: Sequence[Kind], target: str) -> pd.Series:
    """Known labels by id.

    Raises:
        AtomloomError: when two runs have different ones of a structure.
    """
    parts = [run.table[target].dropna() for kind in kinds for run in kind.runs]
    joined = pd.concat(parts).groupby(level=0, sort=True)
    spread = joined.max() - joined.min()
    if len(spread) and spread.max() > 1e-9 * max(1.0, float(joined.max().abs().max())):
        raise AtomloomError(
            f"runs have different labels of {target}, such as those of {spread.idxmax()}",
            where="RUN",
        )
    return joined.first()


def _joined(kinds: Sequence[Kind], target: str, split: str, labels: pd.Series) -> pd.DataFrame:
    """[R, M + 1] label and predictions of each kind, of the rows that all have in a split."""
    columns: dict[Any, pd.Series] = {"label": labels}
    columns |= {place: kind.rows(target, split) for place, kind in enumerate(kinds)}
    frame = pd.DataFrame(columns)
    return frame.dropna().sort_index()


# --- weights and errors ---


def _combination(held: pd.DataFrame, fit: bool) -> Any:
    """Combination of the kinds by their predictions of held-out rows."""
    from atomloom.inference.stack import Combination

    label, predicted = held["label"].to_numpy(), held.drop(columns="label").to_numpy(np.float64)
    count = predicted.shape[1]
    weights = fitted_weights(label, predicted) if fit else np.full(count, 1.0 / count)
    plain = Combination(tuple(weights.tolist()), 0.0, 1.0)
    mean, spread = plain.combined(predicted)
    floor, slope = error_bar(np.abs(mean - label), spread)
    return Combination(plain.weights, floor, slope)


def fitted_weights(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """[M] weights of least squares, not below zero, with the sum 1.

    Args:
        label: [R].
        predicted: [R, M].
    """
    from scipy.optimize import nnls

    # With the sum 1, errors of the mean are the mean of errors, whose squares are to be small.
    errors = predicted - label[:, None]
    scale = np.sqrt((errors**2).mean())
    if not scale > 0:
        return np.full(predicted.shape[1], 1.0 / predicted.shape[1])
    # One more row, with a large weight, holds the sum.
    heavy = 1e4 * np.sqrt(len(label))
    rows = np.vstack([errors / scale, np.full(predicted.shape[1], heavy)])
    found, _ = nnls(rows, np.concatenate([np.zeros(len(label)), [heavy]]))
    found[found < 1e-6 * found.sum()] = 0.0
    return found / found.sum()


def error_bar(error: np.ndarray, spread: np.ndarray) -> tuple[float, float]:
    """Floor and slope of an error bar that holds `WITHIN` of these errors.

    Their ratio is that of the highest likelihood of normal errors, their size by the share of errors within.

    Args:
        error: [R] absolute errors.
        spread: [R] deviations of the kinds.
    """
    scale = float(np.sqrt((error**2).mean()))
    if not scale > 0:
        return 0.0, 0.0
    shares = np.linspace(0.0, 1.0, 101) if spread.any() else np.zeros(1)
    typical = float(np.sqrt((spread**2).mean())) or 1.0
    likelihoods = []
    for share in shares:
        variance = scale**2 * ((1.0 - share) + share * (spread / typical) ** 2)
        variance = np.maximum(variance, 1e-6 * scale**2)
        variance = variance * (error**2 / variance).mean()  # the likeliest size
        likelihoods.append(-np.log(variance).mean() - (error**2 / variance).mean())
    share = shares[int(np.argmax(likelihoods))]
    floor, slope = scale * np.sqrt(1.0 - share), scale * np.sqrt(share) / typical
    bar = np.sqrt(floor**2 + (slope * spread) ** 2)
    size = float(np.quantile(error / np.maximum(bar, 1e-3 * scale), WITHIN))
    return float(size * floor), float(size * slope)


def _errors(
    kinds: Sequence[Kind], combination: Any, splits: Mapping[str, pd.DataFrame]
) -> dict[str, Any]:
    """Errors of the stack and of each kind, by split."""
    found: dict[str, Any] = {}
    for split, frame in splits.items():
        if not len(frame):
            continue
        label = frame["label"].to_numpy()
        predicted = frame.drop(columns="label").to_numpy(np.float64)
        mean, bar = combination.combined(predicted)
        error = np.abs(mean - label)
        found[split] = {
            "count": len(frame),
            "mae": float(error.mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "within_error_bar": float((error <= bar).mean()),
            "mae_of_kinds": {
                kind.name: float(np.abs(predicted[:, place] - label).mean())
                for place, kind in enumerate(kinds)
            },
        }
    return found


def _table(target: str, combination: Any, splits: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Rows with label, prediction and error bar of a target."""
    parts = []
    for split, frame in splits.items():
        mean, bar = combination.combined(frame.drop(columns="label").to_numpy(np.float64))
        parts.append(
            pd.DataFrame(
                {
                    "id": frame.index.to_numpy(),
                    "split": split,
                    target: frame["label"].to_numpy(),
                    f"{target}_predicted": mean,
                    f"{target}_std": bar,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _tell(
    target: str,
    unit: str,
    kinds: Sequence[Kind],
    weights: Sequence[float],
    errors: Mapping[str, Any],
    log: Log,
) -> None:
    """Print weights and errors, one line per kind."""

    def told(values: Mapping[str, float]) -> str:
        return ", ".join(f"{split} {value:.4g}" for split, value in values.items())

    for kind, weight in zip(kinds, weights, strict=True):
        own = {split: found["mae_of_kinds"][kind.name] for split, found in errors.items()}
        share = f"{weight:.3f} of {kind.name}, {plural(len(kind.runs), 'run')}"
        log(f"{target}: {share}: MAE {told(own)} {unit}".rstrip())
    log(
        f"{target}: stack: MAE {told({s: found['mae'] for s, found in errors.items()})} {unit}".rstrip()
    )
    within = [f"{s} {100 * found['within_error_bar']:.0f} %" for s, found in errors.items()]
    log(f"{target}: errors within the error bar: {', '.join(within)}")
