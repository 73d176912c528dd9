"""Stage `report`: one HTML page of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atomloom.errors import again
from atomloom.pipeline.paths import RunPaths, report_mark
from atomloom.pipeline.published import Verdict, verdicts
from atomloom.pipeline.quarantine import QUARANTINE
from atomloom.pipeline.run_card import HISTORY
from atomloom.reports import ReportInputs, relinked, render_report
from atomloom.stages.lookup import StructureLookup
from atomloom.stages.relabel import relabel_run
from atomloom.stages.split import read_split
from atomloom.store.files import read_json, require_digest, write_atomically


def report_run(paths: RunPaths, log: Callable[[str], None]) -> Path:
    """Write the report of the run and return its path; it stays under the run's key, too, where reports of
    other runs link to it.

    Raises:
        AtomloomError: when the run was not evaluated, or the history or the quarantine is truncated.
    """
    output = paths.layout.report
    relabel_run(paths, log)
    card = read_json(paths.run / "run.json", "digests", todo=again("train"))
    for path, digests, stage in (
        (paths.run / HISTORY, card["digests"], "train"),
        (paths.split / QUARANTINE, read_split(paths)["digests"], "split"),
    ):
        require_digest(path, digests[path.name], again(stage))
    merged = paths.layout.merged_config
    inputs = ReportInputs(
        run=paths.run / "run.json",
        metrics=paths.run / "metrics.json",
        predictions=paths.run / "predictions.parquet",
        history=paths.run / HISTORY,
        quarantine=paths.split / QUARANTINE,
        dataset=paths.split / "dataset.parquet",
        index=paths.index / "index.json",
        timings=paths.layout.timings,
        results=paths.layout.results,
        model=paths.config.model.shown_name,
        published=published_of(paths),
        config=merged if merged.exists() else None,
        structures=StructureLookup(paths),
    )

    page = render_report(inputs, output.parent) + report_mark(paths.report_key)
    own = paths.own_report
    _write_page(own, relinked(page, output.parent, own.parent))
    _write_page(output, page)
    log(f"open {output.resolve()}")
    return output


def _write_page(path: Path, page: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def published_of(paths: RunPaths) -> list[Verdict]:
    """The published errors of the config, each with that of the run."""
    config = paths.config
    if config.published is None:
        return []
    metrics = read_json(paths.run / "metrics.json", todo=again("evaluate"))
    units = {spec.reported: spec.reported_unit for spec in config.targets}
    return verdicts(config.published, [metrics], units)
