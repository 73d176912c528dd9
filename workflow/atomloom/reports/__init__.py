"""Reports: one HTML page, and the parity figure of a run.

`write_report` turns the files of a run (run card, metrics, predictions, history, quarantine, stage
timings, graph statistics) into a self-contained page. It knows these files only by their columns,
and nothing of models, training, torch or Snakemake.
"""

from atomloom.reports.figures import parity_figure
from atomloom.reports.html import render_report, write_report
from atomloom.reports.page import relinked
from atomloom.reports.tables import ReportInputs

__all__ = ["ReportInputs", "parity_figure", "relinked", "render_report", "write_report"]
