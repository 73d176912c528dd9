"""Graphs and labels to a trained model and its errors.

REQUIRED INPUTS: the index of graphs, the divided data set.
Of both, the spec is waited for: a table of theirs that was lost is made again, and nothing is trained.
OUTPUTS: a folder a run: run card, model, history; predictions, metrics and the parity figure.
"""

RUN = layout.results / "runs" / "{run}"


rule train:
    """Train the model; a training that was killed goes on where it was."""
    input:
        beside("train"),
        index=ancient(place("index", "spec.json")),
        split=ancient(place("split", "spec.json")),
    output:
        RUN / "run.json",
        RUN / "model.safetensors",
        report(
            RUN / "history.csv",
            caption="../report/history.rst",
            category="Run",
            labels={"result": "learning curve, table"},
        ),
    log:
        layout.logs / "train" / "{run}.log",
    conda:
        environment("training.yaml")
    threads: cores_of_training
    resources:
        **on_nodes(),
        **asks("train", TRAINING.processes),
    params:
        config=merged_config,
    message:
        "Training run {wildcards.run}"
    shell:
        launched()
        + "atomloom train --config {params.config:q} --threads {threads} --log {log:q}"


rule evaluate:
    """Predict every labelled structure and measure the errors of each split."""
    input:
        ancient(RUN / "run.json"),
        ancient(RUN / "model.safetensors"),
        beside("evaluate"),
        index=ancient(place("index", "spec.json")),
        split=ancient(place("split", "spec.json")),
    output:
        report(
            RUN / "metrics.json",
            caption="../report/metrics.rst",
            category="Run",
            labels={"result": "errors by split"},
        ),
        RUN / "metrics.csv",
        RUN / "predictions.parquet",
        RUN / "predictions.csv",
        TABLES,
        report(
            RUN / "parity.png",
            caption="../report/parity.rst",
            category="Run",
            labels={"result": "parity plot"},
        ),
    log:
        layout.logs / "evaluate" / "{run}.log",
    conda:
        environment("training.yaml")
    threads: cores_of_training
    resources:
        **asks("evaluate", 1),
    params:
        config=merged_config,
    message:
        "Evaluating run {wildcards.run}"
    shell:
        "atomloom evaluate --config {params.config:q} --threads {threads} --log {log:q}"
