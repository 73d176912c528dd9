"""A run to a page that a person opens.

REQUIRED INPUTS: an evaluated run, its split and index.
OUTPUTS: `results/<dataset>/report.html`.
"""

REQUEST = layout.results / ".report-wanted"
if workflow.is_main_process and not REQUEST.exists():
    write_text(REQUEST, "")


def report_request(wildcards):
    """The file that says which run the report is wanted of; newer than a report of another run.

    The report has one fixed place, so its name cannot say what it shows. It carries the key of its
    run instead, and only where that is not the wanted one may a time stamp make it anew.
    """
    places = planned()
    if not REQUEST.exists() or REQUEST.read_text() != places.report_key:
        write_text(REQUEST, places.report_key)
    return (
        ancient(REQUEST)
        if report_key_of(layout.report) == places.report_key
        else REQUEST
    )


rule report:
    """Write the report of the run that the config describes."""
    input:
        report_request,
        ancient(place("run", "metrics.json")),
        ancient(place("run", "predictions.parquet")),
        ancient(place("run", "run.json")),
        ancient(place("run", "history.csv")),
        ancient(place("split", "quarantine.csv")),
        ancient(place("index", "index.json")),
    output:
        layout.report,
    log:
        layout.logs / "report.log",
    conda:
        "../../envs/training.yaml"
    message:
        "Writing {output}"
    shell:
        "atomloom report --config {CONFIG} --log {log}"
