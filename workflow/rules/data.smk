"""Raw files to structures.

REQUIRED INPUTS: the files of `dataset.source`, and `dataset.labels.file` if there is one.
OUTPUTS: the plan (records, labels, chunks) and one shard of structures per chunk.
"""


checkpoint plan:
    """Enumerate raw records, fingerprint them, join labels, cut chunks."""
    input:
        kept_here(str(SOURCES)),
        raw_files,
    output:
        plan=PLAN,
        members=layout.plan_folder / "members.parquet",
        labels=layout.plan_folder / "labels.parquet",
        spool=layout.plan_folder / "records.spool",
    log:
        layout.logs / "plan.log",
    conda:
        environment("graphs.yaml")
    resources:
        **asks("plan"),
    params:
        config=merged_config,
    message:
        "Planning: listing records and cutting them into chunks"
    shell:
        "atomloom plan --config {params.config:q} --log {log:q}" + " --spool" * STORED


rule convert:
    """Convert the raw records of one chunk; records that cannot be used go to quarantine."""
    input:
        planned_here,
        beside("convert"),
    output:
        layout.structures("{chunk}"),
    log:
        layout.logs / "convert" / "{chunk}.log",
    priority: 1  # what has been made ahead is fetched before graphs are built
    conda:
        environment("graphs.yaml")
    resources:
        **asks("convert"),
    params:
        config=merged_config,
        hidden=hidden,
        ahead=ahead,
    message:
        "Converting chunk {wildcards.chunk}"
    shell:
        "mv -f {params.hidden:q} {output:q} 2>/dev/null || "
        "atomloom convert --config {params.config:q} --chunk {wildcards.chunk} --ahead {params.ahead:q} --log {log:q}"


rule split:
    """Join labels to structures and divide them into training, validation and test."""
    input:
        ancient(chunks(layout.structures)),
        beside("split"),
        labels=ancient(labels),
        features=ancient(features),
    output:
        layout.results / "split" / "{dataset}" / "dataset.parquet",
        layout.results / "split" / "{dataset}" / "split.json",
        report(
            layout.results / "split" / "{dataset}" / "quarantine.csv",
            caption="../report/quarantine.rst",
            category="Data",
            labels={"result": "quarantine"},
        ),
        layout.results / "split" / "{dataset}" / "spec.json",
    log:
        layout.logs / "split" / "{dataset}.log",
    conda:
        environment("graphs.yaml")
    resources:
        **asks("split"),
    params:
        config=merged_config,
    message:
        "Joining labels and dividing the records"
    shell:
        "atomloom split --config {params.config:q} --log {log:q}"
