"""Report of a run, one HTML page.

REQUIRED INPUTS: an evaluated run, its split and index.
OUTPUTS: `results/<dataset>/report.html`.
"""


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
        beside("report"),
        ancient(tables),
    output:
        report(
            layout.report,
            caption="../report/run.rst",
            category="Run",
            labels={"result": "report"},
        ),
    log:
        layout.logs / "report.log",
    conda:
        environment("training.yaml")
    resources:
        **asks("report"),
    params:
        config=merged_config,
    message:
        "Writing {output}"
    shell:
        "atomloom report --config {params.config:q} --log {log:q}"
