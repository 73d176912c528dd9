"""Stage `report`: one HTML page of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atomloom.files import write_atomically
from atomloom.layout import PlannedLayout, report_mark
from atomloom.reports import ReportInputs, write_report


def report_run(places: PlannedLayout, log: Callable[[str], None]) -> Path:
    """Write the report of the run and return its path.

    Raises:
        AtomloomError: when the run was not evaluated.
    """
    output = places.layout.report
    inputs = ReportInputs(
        run=places.run / "run.json",
        metrics=places.run / "metrics.json",
        predictions=places.run / "predictions.parquet",
        history=places.run / "history.csv",
        quarantine=places.split / "quarantine.csv",
        index=places.index / "index.json",
        timings=places.layout.timings,
    )

    def write(path: Path) -> None:
        write_report(inputs, path)
        with open(path, "a") as file:
            file.write(report_mark(places.report_key))

    write_atomically(output, write)
    log(f"open {output.resolve()}")
    return output
