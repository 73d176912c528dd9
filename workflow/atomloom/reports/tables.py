"""Numbers of the report: reads the files of a run and reduces them to small records.

Every file except the run card, the metrics and the predictions may be absent, and so may every field
of the run card; absent values stay None, and rows left out of a table are counted. It knows
nothing of figures, HTML, models or Snakemake. N is the number of structures of one target.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomloom.errors import AtomloomError
from atomloom.pipeline.published import Verdict
from atomloom.pipeline.quarantine import reason_kind
from atomloom.reports.formats import finite, unit_name
from atomloom.store.files import read_json
from atomloom.store.parquet import read_table
from atomloom.structures.structure import Structure

SPLITS = ("train", "val", "test")
STAGES = ("plan", "convert", "graphs", "index", "split", "train", "evaluate", "predict", "report")
"""Order of the stages in tables and figures; others follow by name."""
RELIABLE = 5
"""Min number of structures that contain an element for its error to be ranked and coloured."""
PERIODIC_TABLE = """
H  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  He
Li Be .  .  .  .  .  .  .  .  .  .  B  C  N  O  F  Ne
Na Mg .  .  .  .  .  .  .  .  .  .  Al Si P  S  Cl Ar
K  Ca Sc Ti V  Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y  Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I  Xe
Cs Ba .  Hf Ta W  Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn
Fr Ra .  Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
.  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .
.  .  La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu .
.  .  Ac Th Pa U  Np Pu Am Cm Bk Cf Es Fm Md No Lr .
"""
POSITIONS = {
    symbol: (row, column)
    for row, line in enumerate(PERIODIC_TABLE.strip().splitlines(), start=1)
    for column, symbol in enumerate(line.split(), start=1)
    if symbol != "."
}
"""Element symbol -> (row, column), both from 1, of the usual 18-column periodic table."""


FindStructures = Callable[[Collection[str]], Mapping[str, Structure]]
"""Function from ids to structures; ids whose structure is not known are left out."""


@dataclass(frozen=True)
class ReportInputs:
    """Files of a run from which the report is made."""

    run: Path
    """Run card, JSON."""
    metrics: Path
    """JSON {target: {split: {mae, rmse, r2, max_error, mad, count}}}."""
    predictions: Path
    """Parquet: id, split, TARGET, TARGET_predicted, formula, elements, n_atoms. Targets with more
    than one number per structure have their own table next to it, TARGET.parquet, one row per number."""
    history: Path | None = None
    """CSV: epoch, step, learning_rate, train_loss, val_loss, val_mae, seconds of each part."""
    quarantine: Path | None = None
    """CSV: id, source, record, reason."""
    timings: Path | None = None
    """Folder of benchmark tables, STAGE/JOB.tsv with at least the columns s and max_rss (MiB)."""
    dataset: Path | None = None
    """Parquet of the divided data set: id, and the column `text:NAME` of groups kept together."""
    index: Path | None = None
    """Graph statistics of the index, JSON: structures, atoms, edges, bytes."""
    results: Path | None = None
    """Folder of the data set's results, with its other runs, sweeps and logs."""
    model: str = ""
    """Name of the model in the report; by default that on the run card."""
    published: Sequence[Verdict] = ()
    """Published errors, each with that of the run."""
    config: Path | None = None
    """Merged config of the run, YAML."""
    structures: FindStructures | None = None
    """Function that looks up the structures to be drawn."""


ERRORS = (
    *("mae", "rmse", "r2", "max_error", "mad", "mae_log10", "rmse_log10"),
    *("accuracy", "f1", "auc", "calibration"),
)
"""Errors of `metrics.json` that the report shows."""


@dataclass(frozen=True)
class Score:
    """Errors of one target on one split; None where the metrics lack them."""

    target: str
    unit: str
    split: str
    count: int | None
    mae: float | None
    rmse: float | None
    r2: float | None
    max_error: float | None
    mad: float | None
    """Mean absolute deviation of the reference values: the error of guessing their mean."""
    mae_log10: float | None = None
    """MAE of decadic logarithms, where the logarithm of the target is learnt."""
    rmse_log10: float | None = None
    accuracy: float | None = None
    """Share of right decisions, where the target is a class; so are the next three None otherwise."""
    f1: float | None = None
    auc: float | None = None
    calibration: float | None = None
    """Expected calibration error of the probabilities."""

    @property
    def is_test(self) -> bool:
        """Whether the split is the test set or one of several with names."""
        return self.split not in ("train", "val")

    @property
    def share_of_mad(self) -> float | None:
        """MAE as a share of the error of guessing the mean."""
        return self.mae / self.mad if self.mae is not None and self.mad else None


@dataclass(frozen=True, eq=False)
class Predictions:
    """Reference and predicted values of one target, without rows that lack one of them."""

    target: str
    unit: str
    id: np.ndarray
    """[N] str."""
    split: np.ndarray
    """[N] str, each of SPLITS or of `named`."""
    formula: np.ndarray
    """[N] str, empty where unknown."""
    elements: tuple[tuple[str, ...], ...]
    """N tuples of different element symbols."""
    n_atoms: np.ndarray
    """[N] float64, NaN where unknown."""
    reference: np.ndarray
    """[N] float64, unit of the target."""
    predicted: np.ndarray
    """[N] float64, unit of the target."""
    unlabelled: int
    """Number of rows left out because they have no finite reference."""
    failed: int
    """Number of rows left out because they have a reference, but no finite prediction."""
    noun: str = "structure"
    """Meaning of a row: a structure, a component of a property with several numbers, or the value of an atom."""
    of_atoms: bool = False
    """Whether a row belongs to one atom, whose element is the only one in `elements`."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """Number of rows left out because they have no finite reference, by split."""
    group: np.ndarray | None = None
    """[N] independent units: the groups that the split kept together, or structures of which a row is a
    part; None if each row is independent."""
    named: tuple[str, ...] = ()
    """Names of further test sets."""
    atom: np.ndarray | None = None
    """[N] int64, index of the atom in its structure, -1 where unknown; None if rows are not of atoms."""
    certainty: np.ndarray | None = None
    """[N] probability of the true one of several classes; None for other targets."""

    def __len__(self) -> int:
        return len(self.reference)

    @property
    def error(self) -> np.ndarray:
        """[N] differences, predicted minus reference; of several classes, of the probability of the true one."""
        return self.predicted - self.reference if self.certainty is None else self.certainty - 1.0

    def of(self, split: str) -> np.ndarray:
        """[N] bool, whether a row is of this split."""
        return self.split == split

    def mae(self, split: str) -> float | None:
        """Mean absolute error on a split; None if it is empty."""
        errors = np.abs(self.error[self.of(split)])
        return float(errors.mean()) if len(errors) else None

    def mae_uncertainty(self, split: str) -> float | None:
        """Standard error of the MAE on a split; None below two groups.

        Errors within a group are correlated: see `standard_error`.
        """
        rows = self.of(split)
        return standard_error(
            np.abs(self.error[rows]), None if self.group is None else self.group[rows]
        )

    def independent(self, split: str) -> int:
        """Number of groups on a split, or of rows if each is independent."""
        rows = self.of(split)
        return int(rows.sum()) if self.group is None else len(np.unique(self.group[rows]))

    def structures(self, split: str) -> int:
        """Number of structures on a split."""
        return (
            len(np.unique(self.id[self.of(split)]))
            if self.noun != "structure"
            else int(self.of(split).sum())
        )

    @property
    def judged_split(self) -> str | None:
        """Split on which errors are broken down: test, or the best substitute that has rows."""
        return next((split for split in judged_first(self.named) if self.of(split).any()), None)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have rows, training first."""
        return tuple(split for split in (*SPLITS, *self.named) if self.of(split).any())


@dataclass(frozen=True, eq=False)
class Structures:
    """Structures of all predictions, whether a target is known or not. S is their number."""

    id: np.ndarray
    """[S] str."""
    split: np.ndarray
    """[S] str."""
    formula: np.ndarray
    """[S] str, empty where unknown."""
    elements: tuple[tuple[str, ...], ...]
    """S tuples of different element symbols."""
    n_atoms: np.ndarray
    """[S] float64, NaN where unknown."""
    named: tuple[str, ...] = ()
    """Names of further test sets."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have rows, training first."""
        return tuple(s for s in (*SPLITS, *self.named) if (self.split == s).any())


@dataclass(frozen=True)
class ElementError:
    """Mean absolute error of the structures that contain an element, or of components on its atoms."""

    symbol: str
    count: int
    mae: float


@dataclass(frozen=True)
class WorstPrediction:
    """Structure among those with the largest errors."""

    id: str
    formula: str
    n_atoms: int | None
    reference: float
    predicted: float
    error: float
    atom: int | None = None
    """Index of the atom, where an error belongs to one."""


@dataclass(frozen=True)
class StageTiming:
    """Time and memory of all jobs of one stage."""

    stage: str
    jobs: int
    seconds: float
    """Seconds of all jobs together."""
    longest: float
    """Seconds of the longest job."""
    max_memory: float | None
    """Max memory of a job, MiB."""


@dataclass(frozen=True)
class QuarantinedRecord:
    """Row of the quarantine table."""

    id: str
    source: str
    record: str
    reason: str


@dataclass(frozen=True)
class Quarantine:
    """Quarantine table, with its reasons grouped."""

    rows: tuple[QuarantinedRecord, ...]
    kinds: tuple[tuple[str, int], ...]
    """(reason without its numbers and names, count), most frequent first."""


@dataclass(frozen=True)
class GraphStatistics:
    """Statistics of the graph index; None where missing."""

    structures: float | None
    atoms: float | None
    edges: float | None
    bytes: float | None
    neighbors: tuple[tuple[int, float], ...]
    """(neighbours, number of atoms with that many), ascending; empty if the index has no histogram."""


@dataclass(frozen=True)
class RunCard:
    """Run card as read: any field may be absent, and none is trusted to have the right type."""

    content: Mapping[str, Any]
    model: str = ""
    """Display name of the model on the card."""

    @property
    def model_name(self) -> str:
        """Display name of the model; empty if the card names none."""
        name = self.text("model", "name")
        return name and (self.model or name)

    def section(self, *path: str) -> Mapping[str, Any]:
        """Mapping inside the card; empty if absent."""
        found = self.value(*path)
        return found if isinstance(found, Mapping) else {}

    def value(self, *path: str) -> Any:
        """Value inside the card; None if absent."""
        found: Any = self.content
        for part in path:
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def text(self, *path: str) -> str:
        """Value inside the card as text; empty if absent."""
        found = self.value(*path)
        return "" if found is None or isinstance(found, (Mapping, list)) else str(found)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets; a single name needs no list."""
        found = self.value("target")
        names = [found] if isinstance(found, str) else found
        return tuple(str(name) for name in names) if isinstance(names, list) else ()

    def unit(self, target: str) -> str:
        """Unit of a target: one for all, or one for each by name or in the order of the targets."""
        found = self.value("unit")
        if isinstance(found, Mapping):
            found = found.get(target)
        elif isinstance(found, list):
            found = dict(zip(self.targets, found, strict=False)).get(target)
        return unit_name(str(found)) if found else ""


def test_sets(card: RunCard) -> tuple[str, ...]:
    """Names of further test sets, from the config on the run card."""
    return tuple(map(str, card.section("config", "split", "test")))


def judged_first(named: Sequence[str]) -> tuple[str, ...]:
    """Splits in the order in which errors on them count."""
    return ("test", *named, "val", "train")


def read_run_card(path: Path) -> RunCard:
    """Read `run.json`.

    Raises:
        AtomloomError: when the file is missing, damaged or not a JSON object.
    """
    return RunCard(_json_object(path))


def read_scores(path: Path, card: RunCard) -> tuple[Score, ...]:
    """Read scores of `metrics.json`, in the order of its targets and of SPLITS, named test sets last.

    Raises:
        AtomloomError: when the file is missing, damaged or not a JSON object.
    """
    scores = []
    for target, splits in _json_object(path).items():
        found = splits if isinstance(splits, Mapping) else {}
        for split in dict.fromkeys((*SPLITS, *found)):
            values = found.get(split)
            if not isinstance(values, Mapping):
                continue
            named = {name: finite(values.get(name)) for name in ERRORS}
            count = finite(values.get("count"))
            if count == 0 or (count is None and not any(v is not None for v in named.values())):
                continue
            scores.append(
                Score(
                    target=str(target),
                    unit=card.unit(str(target)),
                    split=split,
                    count=None if count is None else int(count),
                    **named,
                )
            )
    return tuple(scores)


def read_frame(path: Path, *, as_text: bool = False) -> pd.DataFrame:
    """Read a parquet or CSV table; `as_text` keeps every cell of a CSV as written.

    Raises:
        AtomloomError: when the file is missing or damaged.
    """
    try:
        if path.suffix == ".parquet":
            return read_table(path, todo="remove it and run again")
        text = path.read_text()
        if text and not text.endswith("\n"):
            raise ValueError("it breaks off in its last line")
        as_written = {"dtype": str, "keep_default_na": False} if as_text else {}
        return pd.read_csv(io.StringIO(text), **as_written)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except FileNotFoundError:
        raise AtomloomError("does not exist", where=path, todo="run the stage again") from None
    except (OSError, ValueError) as error:
        raise AtomloomError(
            f"cannot be read as a table: {error}", where=path, todo="remove it and run again"
        ) from None


def frame_of(path: Path, frame: pd.DataFrame, target: str) -> pd.DataFrame:
    """Table that holds a target: the predictions, or its own table next to them.

    Errors as `read_frame`.
    """
    if target in frame or "/" in target:
        return frame
    own = path.with_name(f"{target}.parquet")
    return read_frame(own) if own.exists() else frame


def predictions_of(
    frame: pd.DataFrame,
    target: str,
    unit: str = "",
    groups: Mapping[str, str] | None = None,
    named: Sequence[str] = (),
) -> Predictions | None:
    """Rows of one target, or None if the table has no such columns; `groups` by id, if the split
    kept some together; `named`, the names of further test sets.

    Rows whose split is neither train, val or test nor named are left out here; `strangers` counts them.

    Raises:
        AtomloomError: when the table has no column `split`.
    """
    if target not in frame or f"{target}_predicted" not in frame:
        return None
    if "split" not in frame:
        raise AtomloomError("the predictions have no column `split`", todo="evaluate the run again")
    known = frame[frame["split"].isin((*SPLITS, *named))]
    reference = pd.to_numeric(known[target], errors="coerce").to_numpy(np.float64)
    predicted = pd.to_numeric(known[f"{target}_predicted"], errors="coerce").to_numpy(np.float64)
    complete = np.isfinite(reference) & np.isfinite(predicted)
    rows = known[complete]
    formula, ids = _texts(rows, "formula"), _texts(rows, "id")
    of_atoms = "atom" in rows
    noun = "component" if "component" in rows else "value" if of_atoms else "structure"
    group = np.array([groups.get(name, name) for name in ids], dtype=object) if groups else ids
    return Predictions(
        target=target,
        unit=unit_name(unit),
        noun=noun,
        of_atoms=of_atoms,
        group=group if noun != "structure" or groups else None,
        id=ids,
        split=_texts(rows, "split"),
        formula=formula,
        elements=_elements(rows, formula),
        n_atoms=_sizes(rows),
        reference=reference[complete],
        predicted=predicted[complete],
        unlabelled=int((~np.isfinite(reference)).sum()),
        missing=known["split"][~np.isfinite(reference)].value_counts().to_dict(),
        failed=int((np.isfinite(reference) & ~np.isfinite(predicted)).sum()),
        named=tuple(named),
        atom=(
            pd.to_numeric(rows["atom"], errors="coerce").fillna(-1).to_numpy(np.int64)
            if of_atoms
            else None
        ),
        certainty=_certainty(rows, target, reference[complete]),
    )


def _certainty(rows: pd.DataFrame, target: str, truth: np.ndarray) -> np.ndarray | None:
    """Probabilities of the true classes, if the table has those of several."""
    columns = probability_columns(rows, target)
    if not columns:
        return None
    shares = rows[columns].to_numpy(np.float64)
    known = (truth >= 0) & (truth < len(columns))
    chosen = np.where(known, truth, 0).astype(np.int64)
    return np.where(known, np.take_along_axis(shares, chosen[:, None], axis=1)[:, 0], 0.0)


def probability_columns(frame: pd.DataFrame, target: str) -> list[str]:
    """Columns with the probabilities of several classes of a target, in their order."""
    return [name for n in range(frame.shape[1]) if (name := f"{target}_p{n}") in frame]


def structures_of(frame: pd.DataFrame, named: Sequence[str] = ()) -> Structures:
    """Structures of the predictions, one per row; `named` as for `predictions_of`, other rows are left out."""
    splits = (*SPLITS, *named)
    known = frame[frame["split"].isin(splits)] if "split" in frame else frame.iloc[:0]
    formula = _texts(known, "formula")
    return Structures(
        id=_texts(known, "id"),
        split=_texts(known, "split"),
        formula=formula,
        elements=_elements(known, formula),
        n_atoms=_sizes(known),
        named=tuple(named),
    )


def strangers(frame: pd.DataFrame, named: Sequence[str] = ()) -> int:
    """Number of rows of the predictions whose split is neither one of SPLITS nor named."""
    return int((~frame["split"].isin((*SPLITS, *named))).sum()) if "split" in frame else 0


def standard_error(errors: np.ndarray, groups: np.ndarray | None) -> float | None:
    """Standard error of a mean of absolute errors; None below two groups.

    Groups are independent, rows within one are not: the sums of deviations over each group count (the
    cluster-robust variance of a mean).

    Args:
        errors: [R] absolute errors.
        groups: [R] their groups; None if each row is independent.
    """
    if not len(errors):
        return None
    codes = pd.factorize(np.arange(len(errors)) if groups is None else groups)[0]
    count = int(codes.max()) + 1
    if count < 2:
        return None
    sums = np.bincount(codes, errors - errors.mean())
    return float(math.sqrt(count / (count - 1) * (sums**2).sum()) / len(errors))


def read_groups(path: Path, card: RunCard) -> dict[str, str]:
    """Read the group of each id, if the split kept groups together; otherwise empty.

    Args:
        path: parquet of the divided data set.
        card: the run card, whose config names the group.

    Raises:
        AtomloomError: when the file is damaged.
    """
    name = card.text("config", "split", "group")
    frame = read_frame(path) if name and path.is_file() else pd.DataFrame()
    column = name if name == "formula" else f"text:{name}"
    if column not in frame or "id" not in frame:
        return {}
    return dict(zip(frame["id"].astype(str), frame[column].astype(str), strict=True))


def element_errors(predictions: Predictions, split: str) -> tuple[ElementError, ...]:
    """Errors by element on a split: those with RELIABLE rows first, each by decreasing MAE.

    Empty if all rows have the same elements: all errors would equal that of the split.
    """
    if (
        len({frozenset(predictions.elements[row]) for row in np.flatnonzero(predictions.of(split))})
        < 2
    ):
        return ()
    errors: dict[str, list[float]] = defaultdict(list)
    sizes = np.abs(predictions.error).tolist()
    for row in np.flatnonzero(predictions.of(split)).tolist():
        for symbol in predictions.elements[row]:
            errors[symbol].append(sizes[row])
    found = [
        ElementError(symbol, len(values), math.fsum(values) / len(values))
        for symbol, values in errors.items()
    ]
    return tuple(sorted(found, key=lambda e: (e.count < RELIABLE, -e.mae, e.symbol)))


def worst_predictions(
    predictions: Predictions, split: str, count: int = 10
) -> tuple[WorstPrediction, ...]:
    """Structures of a split with the largest absolute errors, largest first."""
    rows = np.flatnonzero(predictions.of(split))
    order = np.argsort(-np.abs(predictions.error[rows]), kind="stable")[:count]
    return tuple(
        WorstPrediction(
            id=str(predictions.id[row]),
            formula=str(predictions.formula[row]),
            n_atoms=int(n) if np.isfinite(n := predictions.n_atoms[row]) else None,
            reference=float(predictions.reference[row]),
            predicted=float(predictions.predicted[row]),
            error=float(predictions.error[row]),
            atom=(
                int(predictions.atom[row])
                if predictions.atom is not None and predictions.atom[row] >= 0
                else None
            ),
        )
        for row in rows[order]
    )


def read_quarantine(path: Path) -> Quarantine:
    """Read `quarantine.csv`.

    Raises:
        AtomloomError: when the file is damaged.
    """
    frame = read_frame(path, as_text=True)
    columns = [_texts(frame, name) for name in ("id", "source", "record", "reason")]
    rows = tuple(QuarantinedRecord(*map(str, values)) for values in zip(*columns, strict=True))
    kinds = Counter(reason_kind(row.reason, (row.source, row.id)) for row in rows)
    return Quarantine(rows, tuple(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))))


def read_timings(folder: Path) -> tuple[StageTiming, ...]:
    """Aggregate STAGE/**/JOB.tsv benchmark tables; other files are skipped."""
    seconds: dict[str, list[float]] = defaultdict(list)
    memory: dict[str, list[float]] = defaultdict(list)
    for path in sorted(folder.rglob("*.tsv")):
        inside = path.relative_to(folder)
        stage = inside.parts[0] if len(inside.parts) > 1 else inside.stem
        try:
            table = pd.read_csv(path, sep="\t")
        except (OSError, ValueError):
            continue  # a job killed while writing: its time is unknown
        if "s" not in table:
            continue
        seconds[stage] += [v for v in map(finite, table["s"]) if v is not None]
        if "max_rss" in table:
            memory[stage] += [v for v in map(finite, table["max_rss"]) if v is not None]
    order = {stage: place for place, stage in enumerate(STAGES)}
    return tuple(
        StageTiming(
            stage=stage,
            jobs=len(values),
            seconds=math.fsum(values),
            longest=max(values),
            max_memory=max(memory[stage], default=None),
        )
        for stage, values in sorted(
            seconds.items(), key=lambda item: (order.get(item[0], len(order)), item[0])
        )
        if values
    )


def read_graph_statistics(path: Path) -> GraphStatistics:
    """Read `index.json`.

    Raises:
        AtomloomError: when the file is missing, damaged or not a JSON object.
    """
    content = _json_object(path)
    histogram = content.get("neighbors_histogram")
    if isinstance(histogram, list):
        histogram = dict(enumerate(histogram))
    pairs = []
    for neighbors, count in histogram.items() if isinstance(histogram, Mapping) else ():
        neighbors_, count_ = finite(neighbors), finite(count)
        if neighbors_ is not None and count_:
            pairs.append((int(neighbors_), count_))
    return GraphStatistics(
        structures=finite(content.get("structures")),
        atoms=finite(content.get("atoms")),
        edges=finite(content.get("edges")),
        bytes=finite(content.get("bytes")),
        neighbors=tuple(sorted(pairs)),
    )


def numeric(frame: pd.DataFrame, column: str) -> np.ndarray | None:
    """[rows] float64 of a column, NaN where it is not a number; None if absent or without numbers."""
    if column not in frame:
        return None
    values = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64)
    return values if np.isfinite(values).any() else None


def symbols_in(formula: str) -> tuple[str, ...]:
    """Different element symbols of a formula, in its order."""
    found = re.findall(r"[A-Z][a-z]?", formula)
    return tuple(dict.fromkeys(symbol for symbol in found if symbol in POSITIONS))


def _elements(frame: pd.DataFrame, formula: np.ndarray) -> tuple[tuple[str, ...], ...]:
    if "elements" not in frame:
        return tuple(symbols_in(text) for text in formula)
    found = []
    for value, text in zip(frame["elements"], formula, strict=True):
        if isinstance(value, str):
            names: Iterable[Any] = re.split(r"[\s,;-]+", value)
        elif isinstance(value, Iterable):
            names = value
        else:
            names = symbols_in(text)
        found.append(tuple(dict.fromkeys(str(name).strip() for name in names if str(name).strip())))
    return tuple(found)


def _sizes(frame: pd.DataFrame) -> np.ndarray:
    """[rows] float64 numbers of atoms, NaN where unknown."""
    if "n_atoms" not in frame:
        return np.full(len(frame), np.nan)
    return pd.to_numeric(frame["n_atoms"], errors="coerce").to_numpy(np.float64)


def _texts(frame: pd.DataFrame, column: str) -> np.ndarray:
    if column not in frame:
        return np.full(len(frame), "", dtype=object)
    values = frame[column]
    return np.array(
        [
            "" if missing else str(value)
            for value, missing in zip(values, values.isna(), strict=True)
        ],
        dtype=object,
    )


def _json_object(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise AtomloomError("is not a JSON object", where=path, todo="remove it and run again")
    return content
