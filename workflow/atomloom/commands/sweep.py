"""A whole sweep: all trials in turn, without Snakemake; tables, figures, page and the best config."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from atomloom.commands.committee import copy_models, evaluate_committee, members_of
from atomloom.commands.options import Prepare
from atomloom.commands.refit import Refitted, read_refit, refit_best, refit_stands
from atomloom.commands.trials import Log, outcomes, run_slot, suggest_round, sweep_of
from atomloom.config import dump_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths
from atomloom.reports.formats import plural
from atomloom.reports.sweep import RefitRow, SweepPage, write_sweep_page
from atomloom.store.files import write_atomically, write_sealed, write_text
from atomloom.store.parquet import write_table
from atomloom.sweeps.rounds import read_round, result_file, round_file, rounds, rungs, slots
from atomloom.sweeps.runs import paths_at, paths_of
from atomloom.sweeps.table import best_trial, curves, importance, keys_of_the_loss, table_of

FAILED = "failed.csv"
"""Table of a sweep of which no trial was trained to the end."""


def write_sweep(paths: RunPaths, log: Log) -> Path:
    """Write the tables, figures and page of a finished sweep, and `best.yaml`; return their folder.

    Raises:
        AtomloomError: when a result is missing, or no trial was trained to the end.
    """
    sweep, folder, epochs = sweep_of(paths), paths.sweep, paths.config.training.epochs
    done = outcomes(paths, range(rounds(sweep)))
    table = table_of(done)
    if sweep.method == "tpe":
        from atomloom.sweeps.tpe import write_journal

        known = [(trial.point, value) for trial, _, value in done]
        write_journal(sweep, known, folder / "journal.log")
    best = best_trial(done)
    refit = read_refit(paths, best) if sweep.refit else []
    if best is None:
        # not under the names of the workflow's outputs, which Snakemake removes after an error
        write_atomically(folder / FAILED, lambda path: table.to_csv(path, index=False))
        reasons = [result.reason for _, results, _ in done for result in results if result.reason]
        raise AtomloomError(
            f"no trial was trained to the end{f'; the first says: {reasons[0]}' if reasons else ''}",
            where=folder / FAILED,
            todo=f"mend the cause, remove {folder / 'trials'} and run the sweep again",
        )
    if refit:
        runs_of_refit = ",".join(run.run for run in refit)
        table["refit"] = [runs_of_refit if n == best[0].number else "" for n in table["trial"]]
    (folder / FAILED).unlink(missing_ok=True)
    write_table(folder / "sweep.parquet", table)
    write_atomically(folder / "sweep.csv", lambda path: table.to_csv(path, index=False))
    metric = sweep.metric or ("val_mae" if len(paths.config.targets) == 1 else "val_loss")
    worth = importance(sweep, done)
    runs = len(sweep.repeats)
    facts = [("sweep", folder.name), ("method", sweep.method), ("minimised", metric)]
    if sweep.method in ("random", "sobol", "tpe") and len(done) < sweep.count:
        facts.append(("count", f"{sweep.count:,}; further points would have been runs of these"))
    members = members_of(sweep.ensemble, done)
    committee = copy_models(paths, members)
    write_sweep_page(
        SweepPage(
            title=f"Sweep of {paths.config.dataset.name}",
            metric=metric,
            table=table,
            curves=curves(done),
            importance=worth,
            best=best[0].number,
            first_rung=sweep.halving.min_epochs if sweep.halving else 0,
            refit=[_shown_refit(paths, run) for run in refit],
            committee=evaluate_committee(paths, members, log),
            units={spec.reported: spec.reported_unit for spec in paths.config.targets},
            full_epochs=epochs * runs * len(done) if sweep.halving else 0,
            facts=facts,
        ),
        folder,
    )
    trial, results, value = best
    chosen = paths_of(paths, trial, trial.repeats[0])
    write_text(folder / "best.yaml", dump_config(chosen.config))
    write_sealed(
        folder / "sweep.json",
        {
            "sweep": folder.name,
            "metric": metric,
            "trials": len(done),
            "epochs": int(table["epochs"].sum()),
            "best": {
                "trial": trial.number,
                "value": value,
                "point": trial.point,
                "runs": [result.run for result in results],
            },
            "importance": worth,
            "committee": committee,
            "refit": [asdict(run) for run in refit],
        },
    )
    shown = ", ".join(f"{key} {item}" for key, item in trial.point.items())
    log(
        f"best of {plural(len(done), 'trial')}: {shown or 'the config as it is'}; {metric} {value:.4g}"
    )
    if changing := keys_of_the_loss(metric, [one.point for one, _, _ in done]):
        log(
            f"note: losses of different {', '.join(changing)} may be in different units, and are then not to be "
            "compared: sweep.metric may name a val_mae_NAME of history.csv"
        )
    if refit:
        write_text(folder / "refit.yaml", dump_config(paths_at(paths, refit[0].point).config))
    if failed := int((table["status"] == "failed").sum()):
        log(
            f"{plural(failed, 'trial')} failed, see {folder / 'sweep.csv'}; to try them again, remove "
            f"{folder / 'trials'} and run the sweep again: finished trials are not trained again"
        )
    log(f"table, figures and best.yaml are in {folder}")
    return folder


def _shown_refit(paths: RunPaths, refit: Refitted) -> RefitRow:
    """A run of the refit, as the page has it."""
    units = {spec.reported: spec.reported_unit for spec in paths.config.targets}
    errors = [
        f"{name} of {target}: {key} {found[key]:.4g}" + f" {units[target]}" * (key == "mae")
        for target, sets in refit.errors.items()
        for name, found in sets.items()
        for key in ("mae", "accuracy")
        if found.get(key) is not None
    ]
    values = ", ".join(f"{key} {value}" for key, value in refit.values.items())
    return RefitRow(refit.run, values, refit.epochs, refit.best_epochs, errors, refit.reason)


def run_sweep(paths: RunPaths, jobs: int, log: Log, prepare: Prepare) -> Path:
    """All of a sweep, as the workflow would do it; what is there already is not made again.

    Args:
        paths: of the base config, whose plan is there.
        jobs: trials at a time.
        log: takes one line at a time.
        prepare: makes what the training of a config needs, such as `atomloom.api.prepare`.

    Raises:
        AtomloomError: when a step before training fails.
    """
    sweep, epochs = sweep_of(paths), paths.config.training.epochs
    repeats = len(sweep.repeats)
    for round in range(rounds(sweep)):
        file = round_file(paths.sweep, round)
        if not file.exists():
            suggest_round(paths, round, log)
        trials = read_round(file)
        ready: set[tuple[str, str]] = set()
        everything = slots(sweep, epochs, round, len(trials), repeats)
        if all(result_file(paths.sweep, slot).exists() for slot in everything):
            continue
        for trial in trials:
            for repeat in trial.repeats:
                if (repeat.index, repeat.dataset) not in ready:
                    prepare(paths_of(paths, trial, repeat).config, log)
                    ready.add((repeat.index, repeat.dataset))
        for rung in range(len(rungs(sweep, epochs))):
            wanted = [
                slot
                for slot in slots(sweep, epochs, round, len(trials), repeats, rung)
                if not result_file(paths.sweep, slot).exists()
            ]
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(lambda slot: run_slot(paths, slot, sweep.threads, log), wanted))
    best = best_trial(outcomes(paths, range(rounds(sweep))))
    if sweep.refit and not refit_stands(paths, best):
        refit_best(paths, sweep.threads, log, prepare)
    return write_sweep(paths, log)
