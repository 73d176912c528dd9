"""Committee of a sweep: the models of its best trials, and what they predict together."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial

import pandas as pd

from atomloom.commands.trials import Job, Log, sweep_of
from atomloom.errors import AtomloomError, again
from atomloom.pipeline.paths import RunPaths
from atomloom.store.files import write_atomically
from atomloom.store.parquet import read_table, write_table
from atomloom.sweeps.runs import paths_of
from atomloom.sweeps.table import Outcome, status_of

TABLE = "committee.parquet"
"""Predictions of the committee, in the folder of the sweep."""
_DESCRIPTION = ("formula", "elements", "n_atoms")


def members_of(count: int, done: Sequence[Outcome]) -> list[Outcome]:
    """The best finished trials, at most `count`, best first, each model once."""
    finished = [o for o in done if o[2] is not None and status_of(o[1]) == "finished"]
    ordered = sorted(finished, key=lambda o: (o[2], o[0].number))
    by_model = {o[1][0].run: o for o in reversed(ordered)}
    return [o for o in ordered if by_model[o[1][0].run] is o][:count]


def copy_models(paths: RunPaths, members: Sequence[Outcome]) -> list[str]:
    """Copy the models of the members, one each, into `committee/`, which then has no others; return their runs.

    Raises:
        AtomloomError: when a run has no model file any more.
    """
    runs, folder = [], paths.sweep / "committee"
    for place, (_, results, _) in enumerate(members):
        model = paths.layout.results / "runs" / results[0].run / "model.safetensors"
        if not model.exists():
            raise AtomloomError(
                "a run of the sweep has no model file any more",
                where=model,
                todo=f"remove {paths.sweep / 'trials'} and run the sweep again, which trains that run alone",
            )
        write_atomically(folder / f"{place}.safetensors", partial(shutil.copyfile, model))
        runs.append(results[0].run)
    current = {f"{place}.safetensors" for place in range(len(runs))}
    for former in folder.glob("*.safetensors"):
        if former.name not in current:
            former.unlink()
    return runs


def evaluate_committee(
    paths: RunPaths, members: Sequence[Outcome], log: Log
) -> pd.DataFrame | None:
    """Evaluate the members that are not yet, and write means and deviations of their predictions.

    Returns:
        One row per structure that all members have in the same split: id, split, formula, elements, n_atoms,
        and for each scalar target TARGET, TARGET_predicted (mean) and TARGET_std (sample deviation).
        None with fewer than two members, or where one cannot be evaluated.
    """
    (paths.sweep / TABLE).unlink(missing_ok=True)  # of the members of before
    if len(members) < 2:
        return None
    tables = []
    for trial, _, _ in members:
        own = paths_of(paths, trial, trial.repeats[0])
        job = Job(paths, own, sweep_of(paths).threads, log)
        table = own.run / "predictions.parquet"
        if not table.exists() and (reason := job.call("evaluate")):
            log(
                f"warning: no errors of the committee, trial {trial.number} cannot be evaluated: {reason}"
            )
            return None
        tables.append(read_table(table, todo=again("evaluate")))
    joined = join_predictions(tables)
    write_table(paths.sweep / TABLE, joined)
    return joined


def join_predictions(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Means and deviations of the predictions in several tables, see `evaluate_committee`.

    Structures are joined by id and split; those whose id occurs twice are left out, and so are classes, whose
    numbers have no mean.
    """
    by_id = [one.set_index(["id", "split"]) for one in tables]
    by_id = [one[~one.index.duplicated(keep=False)] for one in by_id]
    common = by_id[0].index
    for one in by_id[1:]:
        common = common[common.isin(one.index)]
    aligned = [one.loc[common] for one in by_id]
    found = aligned[0][list(_DESCRIPTION)].copy()
    for column in aligned[0]:
        target = column.removesuffix("_predicted")
        if target == column or target not in aligned[0] or f"{target}_p0" in aligned[0]:
            continue
        predicted = pd.concat([one[column] for one in aligned], axis=1)
        found[target] = aligned[0][target]
        found[column] = predicted.mean(axis=1, skipna=False)
        found[f"{target}_std"] = predicted.std(axis=1, ddof=1, skipna=False)
    return found.reset_index()
