"""Structures to neighbour graphs.

REQUIRED INPUTS: shards of structures.
OUTPUTS: one shard of graphs per chunk, and the index that says where the graph of each record is.
"""


rule graphs:
    """Build the neighbour graphs of one chunk."""
    input:
        graph_here,
        beside("graphs"),
        structures=ancient(layout.structures("{chunk}")),
    output:
        layout.graph_folder.with_name("{graph}") / layout.graphs("{chunk}").name,
    log:
        layout.logs / "graphs" / "{chunk}-{graph}.log",
    conda:
        environment("graphs.yaml")
    resources:
        **asks("graphs"),
    params:
        config=merged_config,
        hidden=hidden,
        ahead=ahead,
    message:
        "Building graphs of chunk {wildcards.chunk}"
    shell:
        "mv -f {params.hidden:q} {output:q} 2>/dev/null || "
        "atomloom graphs --config {params.config:q} --chunk {wildcards.chunk} --ahead {params.ahead:q} --log {log:q}"


rule index:
    """Record where each graph is; every record is in the index or in quarantine."""
    input:
        ancient(graphs_of_index),
        beside("index"),
    output:
        layout.results / "index" / "{index}" / "index.json",
        layout.results / "index" / "{index}" / "index.parquet",
        layout.results / "index" / "{index}" / "quarantine.csv",
        layout.results / "index" / "{index}" / "spec.json",
    log:
        layout.logs / "index" / "{index}.log",
    conda:
        environment("graphs.yaml")
    resources:
        **asks("index"),
    params:
        config=merged_config,
    message:
        "Indexing the graphs"
    shell:
        "atomloom index --config {params.config:q} --log {log:q}"
