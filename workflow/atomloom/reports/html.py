"""Assembly of the report: reads the files, decides what to say, fills the page.

The page is one file that asks nothing of the network; its only script names points and sorts tables. Missing parts are named where they would
be. All text from files reaches the page through autoescape; markup is made only here (formulas) and
in `figures` (drawings).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from atomloom.pipeline.outside_data import overlap_lines, seen_lines
from atomloom.pipeline.published import Verdict
from atomloom.reports import figures, formats, tables
from atomloom.reports.breakdown import Breakdown, break_down
from atomloom.reports.citations import MODELS, Citation, citations
from atomloom.reports.classes import ClassPart, class_part
from atomloom.reports.figures import SPLIT_NAMES, Course
from atomloom.reports.files import FileRow, SweepLink, file_rows, sweeps_of
from atomloom.reports.formats import NONE, number, plural, with_unit
from atomloom.reports.overview import overview_of
from atomloom.reports.page import Drawing, count_text, drawing, environment, error_text, link
from atomloom.reports.runs import runs_part
from atomloom.reports.tables import (
    POSITIONS,
    RELIABLE,
    SPLITS,
    ElementError,
    Predictions,
    Quarantine,
    ReportInputs,
    RunCard,
    Score,
    WorstPrediction,
)
from atomloom.store.files import write_atomically
from atomloom.structures.structure import Structure

FIGURED_TARGETS = 6
"""Max number of targets with their own figures; more would make the page too long."""
QUARANTINE_ROWS = 50
WORST = 10
TREND_SHARE = 4
"""A figure of errors against a property has at most one in so many of the points of a parity plot."""
FEW_TEST_STRUCTURES = 50
MAE_TOLERANCE = 0.01
"""Min relative difference between the MAE of the metrics and of the predictions that is reported."""
TIMES = ("data", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Tile:
    """Key number of the page."""

    label: str
    value: str
    note: str = ""
    unit: str = ""


@dataclass(frozen=True)
class ElementCell:
    """Element in the periodic table; without `error` it is in no structure of the split."""

    symbol: str
    row: int
    column: int
    error: ElementError | None
    heat: float
    """Position of the error from 0 (smallest MAE) to 1 (largest)."""
    tip: str


@dataclass(frozen=True)
class ElementTable:
    """Errors by element."""

    cells: tuple[ElementCell, ...]
    ranked: tuple[ElementError, ...]
    low: float
    high: float
    rare: int
    """Elements in fewer than RELIABLE structures or components."""


@dataclass(frozen=True)
class TargetPart:
    """Content of the page for one target's predictions."""

    target: str
    unit: str
    decimals: int
    split: str
    count: int
    mae: float
    noun: str
    """Counted items: structures, components, or values of atoms."""
    parity: tuple[Drawing, ...]
    """Predicted against reference; empty for classes, whose numbers are names."""
    errors: Drawing | None
    """Distribution of errors; None for classes."""
    holders: str
    """Items over which an element's error is the mean."""
    of_atoms: bool
    named: bool
    """Whether the elements are known."""
    elements: ElementTable | None
    worst: tuple[WorstPrediction, ...]
    breakdown: Breakdown
    classes: ClassPart | None


@dataclass(frozen=True)
class Segment:
    """Segment of the bar that shows the use of the records."""

    name: str
    label: str
    count: int
    share: float


def write_report(paths: ReportInputs, output: Path) -> Path:
    """Write the report of a run as one self-contained HTML file, and return its path.

    The same files give the same bytes.

    Raises:
        AtomloomError: when the run card, the metrics or the predictions are missing, or any existing
            file is damaged.
    """
    output = Path(output)
    page = render_report(paths, output.parent)
    write_atomically(output, lambda path: path.write_text(page, encoding="utf-8"))
    return output


def render_report(paths: ReportInputs, folder: Path) -> str:
    """Report as text, with links relative to `folder`."""
    card = replace(tables.read_run_card(paths.run), model=paths.model)
    scores = tables.read_scores(paths.metrics, card)
    frame = tables.read_frame(paths.predictions)
    targets = tuple(dict.fromkeys([*card.targets, *(score.target for score in scores)]))
    groups = tables.read_groups(paths.dataset, card) if paths.dataset is not None else {}
    predictions = {
        target: found
        for target in targets
        if (
            found := tables.predictions_of(
                tables.frame_of(paths.predictions, frame, target),
                target,
                card.unit(target),
                groups,
                tables.test_sets(card),
            )
        )
        is not None
    }
    history, history_note = _optional_frame(paths.history, "history", "history.csv")
    quarantine = (
        tables.read_quarantine(paths.quarantine)
        if paths.quarantine is not None and paths.quarantine.is_file()
        else None
    )
    timings = (
        tables.read_timings(paths.timings)
        if paths.timings is not None and paths.timings.is_dir()
        else ()
    )
    graphs = (
        tables.read_graph_statistics(paths.index)
        if paths.index is not None and paths.index.is_file()
        else None
    )
    structures = tables.structures_of(frame, tables.test_sets(card))
    shown = [predictions[t] for t in targets if t in predictions and len(predictions[t])]
    classes = {score.target for score in scores if score.accuracy is not None}
    judged = _judged_scores(scores, targets)
    worst = [_worst(found) for found in shown[:FIGURED_TARGETS]]
    # All at once: a shard is read for all its structures.
    ids = list(dict.fromkeys(one.id for own in worst for one in own))
    known = paths.structures(ids) if paths.structures else {}
    course = _course(card, history)
    learning = _learning(card, history, course, targets)
    epoch_times = _epoch_times(history, course)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=f"{card.model_name or 'a model'} on {_dataset_name(card)}",
            subject=_subject(structures),
            summary=_summary(card, judged, predictions),
            meta=_meta(card),
            overview=overview_of(structures, shown[:FIGURED_TARGETS]),
            several=len(shown) > 1,
            tiles=_tiles(card, judged, predictions, course, groups),
            remarks=_remarks(card, scores, frame, targets, predictions, quarantine, history),
            scores=scores,
            published=_published(paths.published),
            decimals={
                target: formats.decimals_for(min(maes))
                for target in targets
                if (maes := [s.mae for s in scores if s.target == target and s.mae])
            },
            facts=_facts(card),
            config=_yaml(card.section("config")),
            environment=_rows(card.section("environment")),
            determinism=_rows(card.section("determinism")),
            segments=_segments(card),
            dataset=card.section("dataset"),
            quarantine=quarantine,
            quarantine_rows=QUARANTINE_ROWS,
            quarantine_link=link(paths.quarantine, folder),
            graphs=graphs,
            graph_facts=_graph_facts(graphs),
            neighbors=_neighbors(graphs),
            learning=learning,
            history_note="no curves: the model was fitted at once"
            if _is_tabular(card)
            else history_note,
            parts=[
                _target_part(
                    place,
                    found,
                    figures.VECTOR_POINTS // min(len(shown), FIGURED_TARGETS),
                    worst[place],
                    known,
                    frame if found.target in classes else None,
                )
                for place, found in enumerate(shown[:FIGURED_TARGETS])
            ],
            unfigured=[p.target for p in shown[FIGURED_TARGETS:]],
            unpredicted=[t for t in targets if not (t in predictions and len(predictions[t]))],
            timings=timings,
            timing_figure=_timing_figure(timings),
            epoch_times=epoch_times,
            runs=None
            if paths.results is None
            else runs_part(paths.results, card.text("run_key"), folder),
            keys=_rows(card.section("keys")) or _rows({"run": card.text("run_key")}),
            commit=card.text("code", "commit"),
            dirty=card.value("code", "dirty") is True,
            command=_command(paths),
            files=_files(paths, folder),
            sweeps=_sweeps(card, paths, folder),
            citations=_citations(card),
            paper_known=card.text("model", "name") in MODELS,
            run_key=_run_key(card),
            config_link=link(paths.config, folder),
            results=_results(paths),
            split_names=SPLIT_NAMES,
            reliable=RELIABLE,
        )
    )


# --- head -------------------------------------------------------------------------------------


def _judged_scores(scores: tuple[Score, ...], targets: tuple[str, ...]) -> tuple[Score, ...]:
    """Scores of each target: on test, or else on the test sets with names, or on the best substitute that has
    an MAE."""
    found = []
    for target in targets:
        by_split = {s.split: s for s in scores if s.target == target and s.mae is not None}
        named = [split for split in by_split if split not in SPLITS]
        split = next((s for s in tables.judged_first(named) if s in by_split), None)
        if split is not None:
            found += [by_split[s] for s in (named if split in named else [split])]
    return tuple(found)


def _subject(structures: tables.Structures) -> str:
    """Sentence on the structures, and nothing on errors: those stand below the data."""
    counts = {split: int((structures.split == split).sum()) for split in structures.splits}
    parts = [f"{number(n)} {SPLIT_NAMES.get(split, split)}" for split, n in counts.items()]
    text = plural(sum(counts.values()), "labelled structure")
    return f"{text}: {', '.join(parts)}" if len(parts) > 1 else text


def _summary(
    card: RunCard, judged: tuple[Score, ...], predictions: Mapping[str, Predictions]
) -> str:
    """Sentence on the model, the data and the errors reached."""
    head = f"{card.model_name or 'a model'} on {_dataset_name(card)}"
    if not judged:
        return f"{head}: no errors are known, the metrics are empty"
    parts = []
    for score in judged[:4]:
        name = f" of {score.target}" if len(judged) > 1 else ""
        if score.accuracy is not None:
            parts.append(f"{score.split} accuracy{name} {formats.percent(score.accuracy)}")
        else:
            parts.append(f"{score.split} MAE{name} {error_text(score.mae, score.unit)}")
    if len(judged) > 4:
        parts.append(f"and {len(judged) - 4} more targets")
    text = f"{head}: {', '.join(parts)}"
    counts = {
        predictions[score.target].structures(score.split)
        if score.target in predictions and predictions[score.target].noun != "structure"
        else score.count
        for score in judged
    }
    if len(counts) == 1 and (count := counts.pop()) is not None:
        text += f" over {plural(count, 'structure')}"
    if len(judged) == 1 and judged[0].accuracy is not None:
        if share := _most_frequent(predictions.get(judged[0].target), judged[0].split):
            text += f" (the most frequent class has {formats.percent(share)})"
    elif len(judged) == 1 and judged[0].mad is not None:
        text += f" (mean absolute deviation {error_text(judged[0].mad, judged[0].unit)})"
    return text


def _most_frequent(predictions: Predictions | None, split: str) -> float | None:
    """Share of the most frequent class of a split: the accuracy of always guessing it."""
    if predictions is None or not len(own := predictions.reference[predictions.of(split)]):
        return None
    return float(np.unique(own, return_counts=True)[1].max() / len(own))


def _tiles(
    card: RunCard,
    judged: tuple[Score, ...],
    predictions: Mapping[str, Predictions],
    course: Course | None,
    groups: Mapping[str, str],
) -> list[Tile]:
    tiles = []
    for score in judged[:4]:
        suffix = f", {score.target}" if len(judged) > 1 else ""
        found = predictions.get(score.target)
        uncertainty = found.mae_uncertainty(score.split) if found is not None else None
        if score.accuracy is not None:
            tiles += _class_tiles(score, suffix, uncertainty)
            continue
        value, unit = formats.measured(score.mae, score.unit)
        note = ""
        if found is not None and uncertainty:
            scale = 1000 if unit != score.unit else 1
            note = f"± {number(scale * uncertainty, 2)} standard error"
            if found.group is not None:
                kind = "group" if groups else "structure"
                note += f" over {plural(found.independent(score.split), kind)}"
        tiles.append(Tile(f"{score.split} MAE{suffix}", value, note, unit))
    if len(judged) == 1 and judged[0].accuracy is None:
        score = judged[0]
        if score.rmse is not None:
            largest = error_text(score.max_error, score.unit)
            value, unit = formats.measured(score.rmse, score.unit)
            note = f"largest error {largest}" if score.max_error is not None else ""
            tiles.append(Tile(f"{score.split} RMSE", value, note, unit))
        if score.r2 is not None:
            tiles.append(Tile(f"{score.split} R²", formats.fixed(score.r2, 3)))
        if score.share_of_mad is not None:
            tiles.append(
                Tile("MAE / MAD", formats.percent(score.share_of_mad), "100 % is guessing the mean")
            )
    if (used := card.value("dataset", "used")) is not None:
        train = formats.finite(card.value("dataset", "train"))
        note = f"{number(int(train))} to train on" if train is not None else ""
        tiles.append(Tile("structures", count_text(used), note))
    if (parameters := card.value("model", "parameters")) is not None:
        tiles.append(Tile("parameters", count_text(parameters)))
    if (epochs := card.value("epochs_run")) is not None and not _is_tabular(card):
        note = f"best: {course.best:,.0f}" if course and course.best is not None else ""
        tiles.append(Tile("epochs", count_text(epochs), note))
    if (seconds := card.value("seconds")) is not None:
        device = card.text("environment", "device")
        tiles.append(
            Tile("training time", formats.duration(seconds), f"on {device}" if device else "")
        )
    return tiles


def _class_tiles(score: Score, suffix: str, uncertainty: float | None) -> list[Tile]:
    """Tiles of a target whose values are classes; its MAE is of probabilities."""
    note = f"± {number(uncertainty, 2)} standard error" if uncertainty else ""
    values = {
        "accuracy": (formats.percent(score.accuracy), ""),
        "F1": (None if score.f1 is None else formats.fixed(score.f1, 3), ""),
        "AUC": (None if score.auc is None else formats.fixed(score.auc, 3), "0.5 is guessing"),
        "error of the probability": (number(score.mae), note),
    }
    return [
        Tile(f"{score.split} {name}{suffix}", value, note)
        for name, (value, note) in values.items()
        if value is not None
    ]


def _meta(card: RunCard) -> list[tuple[str, str]]:
    rows = [
        ("run", _run_key(card)),
        ("finished", formats.moment(card.value("finished") or card.value("started"))),
        ("atomloom", card.text("environment", "atomloom")),
    ]
    return [(name, value) for name, value in rows if value and value != NONE]


def _remarks(
    card: RunCard,
    scores: tuple[Score, ...],
    frame: pd.DataFrame,
    targets: tuple[str, ...],
    predictions: Mapping[str, Predictions],
    quarantine: Quarantine | None,
    history: pd.DataFrame | None,
) -> list[str]:
    """Remarks that a careful reader needs before trusting the numbers."""
    remarks = []
    if not any(score.is_test for score in scores):
        remarks.append(
            "There is no test split: the errors above are not those of unseen structures."
        )
    counts: dict[str, int] = {}
    for s in scores:
        if s.is_test and s.count is not None:
            found = predictions.get(s.target)
            own = s.count if found is None else found.structures(s.split)
            counts[s.split] = max(counts.get(s.split, 0), own)
    remarks += [
        f"The {split} split holds only {plural(count, 'structure')}: "
        "consider the standard error of the MAE."
        for split, count in counts.items()
        if count < FEW_TEST_STRUCTURES
    ]
    remarks += [
        f"{score.split} MAE of {score.target} is no better than guessing the mean of the split."
        for score in scores
        if score.split != "train" and (score.share_of_mad or 0) >= 1 and score.accuracy is None
    ]
    remarks += [
        f"{score.split} accuracy of {score.target} is no better than always guessing the most frequent class."
        for score in scores
        if score.split != "train"
        and score.accuracy is not None
        and score.accuracy <= (_most_frequent(predictions.get(score.target), score.split) or 0.0)
    ]
    remarks += [
        f"All {score.target} of the {score.split} split are equal: its errors say nothing of what was learnt."
        for score in scores
        if score.split != "train" and score.mad == 0 and (score.count or 0) > 1
    ]
    for target in targets:
        found = predictions.get(target)
        if found is None:
            continue
        if found.failed:
            remarks.append(
                f"{plural(found.failed, 'prediction')} of {target} are not finite numbers: "
                "left out of figures and tables."
            )
        if found.unlabelled:
            remarks.append(
                f"{plural(found.unlabelled, found.noun)} without a reference {target}: "
                "left out of its figures and tables."
            )
        for score in scores:
            mae = found.mae(score.split) if score.target == target else None
            if mae is None or score.mae is None:
                continue
            if abs(mae - score.mae) > MAE_TOLERANCE * max(mae, score.mae):
                remarks.append(
                    f"The metrics give a {score.split} MAE of {target} of {number(score.mae)}, the "
                    f"predictions {number(mae)}: the two files do not belong together."
                )
    if unknown := tables.strangers(frame, tables.test_sets(card)):
        remarks.append(
            f"{plural(unknown, 'row')} of the predictions belong to none of the splits train, val and test, "
            "and are not shown."
        )
    refused = formats.finite(card.value("dataset", "quarantined"))
    if refused is None and quarantine is not None:
        refused = len(quarantine.rows)
    if refused:
        records = formats.finite(card.value("dataset", "records"))
        share = f" ({formats.percent(refused / records)} of all)" if records else ""
        remarks.append(f"{plural(int(refused), 'record')}{share} went to quarantine.")
    remarks += _duplicate_remarks(card)
    remarks += [f"{line[:1].upper()}{line[1:]}." for line in overlap_lines(card.content)]
    best, run = formats.finite(card.value("best_epoch")), formats.finite(card.value("epochs_run"))
    limit = formats.finite(card.value("config", "training", "epochs"))
    last = None
    if history is not None and (epochs := tables.numeric(history, "epoch")) is not None:
        last = float(np.nanmax(epochs))  # counts from 0 or 1, as best_epoch does
    if best is not None and run and run > 1 and best == last and (limit is None or run >= limit):
        remarks.append("The best epoch was the last one: training longer may still help.")
    if card.value("code", "dirty") is True:
        remarks.append("The code had uncommitted changes: the commit alone does not identify it.")
    return remarks


def _duplicate_remarks(card: RunCard) -> list[str]:
    """Remarks on the duplicates found by the leak guard, and their treatment."""
    found = formats.finite(card.value("dataset", "duplicates"))
    if not found:
        return []
    rows = plural(int(found), "training or validation structure")
    stand = "is" if found == 1 else "are"
    if formats.finite(card.value("dataset", "removed_as_duplicates")):
        gone = "was" if found == 1 else "were"
        return [f"{rows}, which {stand} also in a split nearer to the test, {gone} removed."]
    return [f"{rows} {stand} also in a split nearer to the test: errors may look too small."]


def _published(verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """Rows of the table that shows the run's errors beside published ones."""
    rows = []
    for found in verdicts:
        theirs, unit = formats.measured(found.published.value, formats.unit_name(found.unit))
        scale = 1000 if unit == "meV/atom" and found.unit == "eV/atom" else 1
        rows.append(
            {
                "source": found.source,
                "error": f"{found.published.metric.upper()} of {found.published.target}",
                "theirs": with_unit(theirs, unit),
                "ours": NONE
                if found.ours is None
                else with_unit(number(float(scale * found.ours)), unit),
                "limit": with_unit(number(float(scale * found.published.limit)), unit),
                "state": f"{found.state}{found.reason}",
            }
        )
    return rows


# --- what was run -----------------------------------------------------------------------------


def _facts(card: RunCard) -> list[tuple[str, str]]:
    config = card.section("config")
    training = config.get("training")
    training = training if isinstance(training, Mapping) else {}
    targets = ", ".join(
        f"{target} ({card.unit(target)})" if card.unit(target) else target
        for target in card.targets
    )
    schedule = ", ".join(
        f"{training[name]}" for name in ("optimizer", "scheduler") if name in training
    )
    features = card.value("config", "dataset", "global_features")
    derived = card.value("config", "features")
    of_networks = ("optimiser", "learning rate", "precision", "epochs run", "best epoch")
    rows: list[tuple[str, Any]] = [
        ("data set", card.text("dataset", "name")),
        ("target", targets),
        ("model", card.model_name),
        ("parameters", count_text(card.value("model", "parameters"))),
        (
            "global features",
            count_text(len(features)) if isinstance(features, list) and features else "",
        ),
        ("derived features", ", ".join(derived) if isinstance(derived, Mapping) else ""),
        ("loss", training.get("loss")),
        ("optimiser", schedule),
        ("learning rate", formats.brief(training.get("learning_rate"))),
        ("precision", training.get("precision")),
        ("seed", training.get("seed")),
        ("epochs run", count_text(card.value("epochs_run"))),
        ("best epoch", count_text(card.value("best_epoch"))),
        ("continues", _parent(card)),
        ("started from", _start_model(card)),
        ("outside data", "; ".join(seen_lines(card.content))),
        ("started", formats.moment(card.value("started"))),
        ("finished", formats.moment(card.value("finished"))),
        ("training time", formats.duration(card.value("seconds"))),
        ("device", card.text("environment", "device")),
        ("processor", card.text("environment", "cpu")),
        ("commit", card.text("code", "commit")[:12]),
    ]
    if _is_tabular(card):
        rows = [(name, value) for name, value in rows if name not in of_networks]
    return [(name, str(v)) for name, v in rows if v is not None and str(v) not in ("", NONE)]


def _is_tabular(card: RunCard) -> bool:
    """Whether the model was fitted at once to a table, and saw no graph."""
    return card.value("config", "graph", "neighbors") == "none"


def _parent(card: RunCard) -> str:
    """Run that this one continues, and after how many epochs; empty without."""
    run, epochs = card.text("parent", "run"), count_text(card.value("parent", "epochs"))
    return f"run {run} after {epochs} epochs" if run else ""


def _start_model(card: RunCard) -> str:
    """Model that the run started from, with the digest of its weights; empty without."""
    weights = card.text("start_from", "weights")
    named = card.text("config", "training", "start_from")
    return f"{named}, weights {weights[:16]}" if weights else ""


def _rows(section: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Entries of a mapping as text, nested ones with dotted names; absent values left out."""
    rows = []
    for name, value in section.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}.{inner}", text) for inner, text in _rows(value)]
        elif isinstance(value, list):
            rows.append((str(name), ", ".join(map(str, value))))
        elif isinstance(value, bool):
            rows.append((str(name), "yes" if value else "no"))
        elif value is not None and value != "":
            rows.append((str(name), str(value)))
    return rows


def _yaml(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=90).rstrip()


def _command(paths: ReportInputs) -> str:
    config = "config.yaml" if paths.config is None else paths.config.as_posix()
    return shlex.join(["snakemake", "--cores", "all", "--configfile", config])


def _run_key(card: RunCard) -> str:
    return card.text("run_key") or card.text("keys", "run")


def _results(paths: ReportInputs) -> str:
    """Options that say where the results are; empty where they are in the usual folder."""
    above = Path("results") if paths.results is None else paths.results.parent
    return "" if above == Path("results") else f" --results {shlex.quote(above.as_posix())}"


def _files(paths: ReportInputs, folder: Path) -> list[FileRow]:
    listed = {"run": paths.run, "split": paths.dataset, "index": paths.index}
    single = {"config": paths.config}
    if paths.results is not None:
        single |= {"logs": paths.results / "logs", "times": paths.results / "timings"}
    return file_rows(
        {name: path.parent for name, path in listed.items() if path and path.is_file()},
        {name: path for name, path in single.items() if path},
        folder,
    )


def _sweeps(card: RunCard, paths: ReportInputs, folder: Path) -> list[SweepLink]:
    if paths.results is None:
        return []
    return sweeps_of(_run_key(card), paths.results / "sweeps", folder)


def _citations(card: RunCard) -> list[Citation]:
    sources = card.value("config", "dataset", "source")
    return citations(
        card.text("environment", "atomloom"),
        card.text("model", "name"),
        [str(one) for one in (sources if isinstance(sources, list) else [sources or ""])],
    )


# --- data -------------------------------------------------------------------------------------


def _segments(card: RunCard) -> list[Segment]:
    """Use of the records: splits, quarantine, the leak guard, and those in none of these."""
    dataset = card.section("dataset")
    names = (*SPLITS, "quarantined", "removed_as_duplicates", "isolated_frames")
    counts = {name: formats.finite(dataset.get(name)) for name in names}
    known = {name: int(count) for name, count in counts.items() if count}
    named = {
        str(name): int(count)
        for name, value in card.section("dataset", "test_sets").items()
        if (count := formats.finite(value))
    }
    records = formats.finite(dataset.get("records"))
    rest = int(records) - sum(known.values()) - sum(named.values()) if records else 0
    if rest > 0:
        known["unused"] = rest
    total = sum(known.values()) + sum(named.values())
    labels = {
        **SPLIT_NAMES,
        "quarantined": "in quarantine",
        "removed_as_duplicates": "duplicates across splits, removed",
        "isolated_frames": "isolated atoms, taken for reference energies",
        "unused": "not used",
    }
    segments = [Segment(n, labels[n], c, c / total) for n, c in known.items()]
    own = [Segment("test", f"test set {n}", c, c / total) for n, c in named.items()]
    place = sum(segment.name in SPLITS for segment in segments)
    return [*segments[:place], *own, *segments[place:]]


def _graph_facts(graphs: tables.GraphStatistics | None) -> list[tuple[str, str]]:
    if graphs is None:
        return []
    rows = [
        ("graphs", count_text(graphs.structures)),
        ("atoms", count_text(graphs.atoms)),
        ("edges", count_text(graphs.edges)),
        ("on disk", formats.byte_size(graphs.bytes)),
    ]
    if graphs.structures:
        if graphs.atoms is not None:
            rows.append(("atoms per structure", number(graphs.atoms / graphs.structures)))
        if graphs.bytes is not None:
            rows.append(
                ("on disk per structure", formats.byte_size(graphs.bytes / graphs.structures))
            )
    if not graphs.edges:
        rows = [(name, value) for name, value in rows if name != "edges"]
    elif graphs.atoms:
        rows.append(("edges per atom", number(graphs.edges / graphs.atoms)))
    return [(name, value) for name, value in rows if value != NONE]


def _neighbors(graphs: tables.GraphStatistics | None) -> Drawing | None:
    if graphs is None or not graphs.neighbors or not graphs.edges:
        return None
    figure = figures.neighbor_figure(graphs)
    least, most = graphs.neighbors[0][0], graphs.neighbors[-1][0]
    caption = f"Neighbours per atom in the graphs: {least} to {most}."
    return drawing(figure, "neighbors", caption)


# --- learning ---------------------------------------------------------------------------------


def _course(card: RunCard, history: pd.DataFrame | None) -> Course | None:
    if history is None or not len(history):
        return None
    best = formats.finite(card.value("best_epoch"))
    epoch, step = tables.numeric(history, "epoch"), tables.numeric(history, "step")
    if epoch is not None and (len(np.unique(epoch)) == len(epoch) or step is None):
        return Course(epoch, "epoch", best)
    if step is not None:
        return Course(step, "step", None)
    return Course(np.arange(1, len(history) + 1, dtype=np.float64), "row of the history", None)


def _learning(
    card: RunCard, history: pd.DataFrame | None, course: Course | None, targets: tuple[str, ...]
) -> list[Drawing]:
    if history is None or course is None or _is_tabular(card):
        return []
    drawings = []
    losses = {
        split: values
        for split in ("train", "val")
        if (values := tables.numeric(history, f"{split}_loss")) is not None
    }
    if losses:
        kind = card.text("config", "training", "loss")
        label = f"loss ({kind} of standardised target)" if kind else "loss"
        last = ", ".join(
            f"{SPLIT_NAMES[s]} {number(_last(values))}" for s, values in losses.items()
        )
        caption = f"Loss over training. At the end: {last}."
        drawings.append(drawing(figures.loss_figure(course, losses, label), "loss", caption))
    errors = {
        target: values
        for target in targets
        if (values := tables.numeric(history, f"val_mae_{target}")) is not None
    }
    alone = tables.numeric(history, "val_mae")
    if not errors and alone is not None:
        errors = {targets[0] if len(targets) == 1 else "all targets": alone}
    units = {name: card.unit(name) if name in targets else "" for name in errors}
    for place, unit in enumerate(dict.fromkeys(units.values())):
        group = {name: values for name, values in errors.items() if units[name] == unit}
        least = ", ".join(
            f"{name} {error_text(float(np.nanmin(values)), unit)}" for name, values in group.items()
        )
        caption = f"Mean absolute error on the validation split. Lowest: {least}."
        figure = figures.validation_figure(course, group, unit)
        drawings.append(drawing(figure, f"validation-{place}", caption))
    if (rate := tables.numeric(history, "learning_rate")) is not None:
        caption = f"Learning rate; its peak is {formats.brief(float(np.nanmax(rate)))}."
        drawings.append(drawing(figures.learning_rate_figure(course, rate), "rate", caption))
    return drawings


def _epoch_times(history: pd.DataFrame | None, course: Course | None) -> Drawing | None:
    if history is None or course is None or len(history) < 2:
        return None
    parts = {
        part: values
        for part in TIMES
        if (values := tables.numeric(history, f"{part}_seconds")) is not None
    }
    if not parts or not all(np.isfinite(course.x)):
        return None
    totals = {part: float(np.nansum(values)) for part, values in parts.items()}
    whole = sum(totals.values())
    if whole <= 0:
        return None
    shares = ", ".join(f"{part} {formats.percent(t / whole)}" for part, t in totals.items())
    caption = f"Time per epoch by part. Over all epochs: {shares}."
    of_epochs = np.nan_to_num(np.sum(list(parts.values()), axis=0))
    if of_epochs.max() > figures.longest_shown(of_epochs):
        caption += f" The longest took {formats.duration(of_epochs.max())}, beyond the figure."
    return drawing(figures.epoch_time_figure(course, parts), "epoch-times", caption)


# --- predictions ------------------------------------------------------------------------------


def _worst(predictions: Predictions) -> tuple[tables.WorstPrediction, ...]:
    """Largest errors of a target on its judged split."""
    split = predictions.judged_split
    assert split is not None  # predictions without rows are not shown
    return tables.worst_predictions(predictions, split, WORST)


def _parity(
    place: int, predictions: Predictions, vector_points: int, errors: np.ndarray, mae: float
) -> tuple[tuple[Drawing, ...], Drawing]:
    """Predicted against reference, and the distribution of errors; `errors` of the judged split."""
    split = predictions.judged_split
    assert split is not None  # predictions without rows are not shown
    parity = []
    for panel, (what, figure, tips) in enumerate(
        figures.parity_figures(predictions, vector_points)
    ):
        caption = f"Predicted against reference {predictions.target}, {what}."
        if "points-largest" in tips:
            caption += f" Rings: the {len(tips['points-largest'])} largest errors; point at one for its name."
        elif any(tips.values()):
            caption += " Point at a structure to see its name."
        parity.append(drawing(figure, f"parity-{place}-{panel}", caption, tips))
    figure, reach, beyond = figures.error_figure(predictions)
    bias = with_unit(
        formats.fixed(errors.mean(), formats.decimals_for(mae), sign=True), predictions.unit
    )
    middle = error_text(float(np.median(np.abs(errors))), predictions.unit)
    tail = error_text(float(np.quantile(np.abs(errors), 0.95)), predictions.unit)
    caption = (
        f"Errors. On {SPLIT_NAMES.get(split, split)}: mean {bias}, half of them within {middle}, "
        f"95 % within {tail}."
    )
    if beyond:
        caption += f" {plural(beyond, predictions.noun)} beyond ± {number(reach)} not shown."
    return tuple(parity), drawing(figure, f"errors-{place}", caption)


def _target_part(
    place: int,
    predictions: Predictions,
    vector_points: int,
    worst: tuple[tables.WorstPrediction, ...],
    structures: Mapping[str, Structure],
    classes: pd.DataFrame | None,
) -> TargetPart:
    """Part of the page on one target; `classes` are the predictions, if its values are classes."""
    split = predictions.judged_split
    assert split is not None  # predictions without rows are not shown
    errors = predictions.error[predictions.of(split)]
    mae = float(np.abs(errors).mean())
    parity, distribution = (
        _parity(place, predictions, vector_points, errors, mae) if classes is None else ((), None)
    )
    return TargetPart(
        target=predictions.target,
        unit=predictions.unit,
        decimals=formats.decimals_for(mae),
        split=split,
        count=len(errors),
        mae=mae,
        noun=predictions.noun,
        holders=(
            f"{predictions.noun}s on atoms of it"
            if predictions.of_atoms
            else f"{'components of ' * (predictions.noun != 'structure')}structures that contain it"
        ),
        of_atoms=predictions.of_atoms,
        named=any(predictions.elements),
        parity=parity,
        errors=distribution,
        elements=_element_table(predictions, split),
        worst=worst,
        breakdown=break_down(place, predictions, worst, vector_points // TREND_SHARE, structures),
        classes=None if classes is None else class_part(classes, predictions.target, split, place),
    )


def _element_table(predictions: Predictions, split: str) -> ElementTable | None:
    ranked = tables.element_errors(predictions, split)
    if not ranked:
        return None
    reliable = [e for e in ranked if e.count >= RELIABLE] or list(ranked)
    low, high = min(e.mae for e in reliable), max(e.mae for e in reliable)
    by_symbol = {e.symbol: e for e in ranked}
    cells = []
    for symbol, (row, column) in POSITIONS.items():
        error = by_symbol.get(symbol)
        heat, tip = 0.0, f"{symbol}: in no {predictions.noun} of the split"
        if error is not None:
            heat = (error.mae - low) / (high - low) if high > low else 0.5
            mae = error_text(error.mae, predictions.unit)
            tip = f"{symbol}: MAE {mae} over {plural(error.count, predictions.noun)}"
        cells.append(ElementCell(symbol, row, column, error, min(1.0, max(0.0, heat)), tip))
    return ElementTable(
        cells=tuple(cells),
        ranked=ranked,
        low=low,
        high=high,
        rare=sum(e.count < RELIABLE for e in ranked),
    )


# --- timing -----------------------------------------------------------------------------------


def _timing_figure(timings: tuple[tables.StageTiming, ...]) -> Drawing | None:
    if not timings:
        return None
    total = sum(t.seconds for t in timings)
    jobs = sum(t.jobs for t in timings)
    caption = f"Time by stage: {formats.duration(total)} in {plural(jobs, 'job')}."
    return drawing(figures.stage_figure(timings), "stages", caption)


# --- shared -----------------------------------------------------------------------------------


def _optional_frame(path: Path | None, what: str, file: str) -> tuple[pd.DataFrame | None, str]:
    """Table that may be absent, and the text to show in that case."""
    if path is None or not path.is_file():
        return None, f"no {what}: the run has no {file}"
    frame = tables.read_frame(path)
    return (frame, "") if len(frame) else (None, f"no {what}: {file} has no rows")


def _last(values: np.ndarray) -> float:
    return float(values[np.isfinite(values)][-1])


def _dataset_name(card: RunCard) -> str:
    return card.text("dataset", "name") or "an unnamed data set"
