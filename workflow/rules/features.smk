"""Derived features: numbers that are computed for each structure, by the sources of the section `features`.

REQUIRED INPUTS: shards of structures.
OUTPUTS: one shard of numbers per chunk and feature.
"""


rule features:
    """Compute the numbers of one feature for the structures of one chunk."""
    input:
        feature_here,
        beside("features"),
        structures=ancient(layout.structures("{chunk}")),
    output:
        layout.features_folder / "{feature}" / layout.graphs("{chunk}").name,
    log:
        layout.logs / "features" / "{chunk}-{feature}.log",
    conda:
        environment("training.yaml")
    resources:
        **asks("features"),
    params:
        config=merged_config,
        hidden=hidden,
        ahead=ahead,
    message:
        "Computing features {wildcards.feature} of chunk {wildcards.chunk}"
    shell:
        "mv -f {params.hidden:q} {output:q} 2>/dev/null || "
        "OMP_NUM_THREADS={threads} atomloom features --config {params.config:q} --chunk {wildcards.chunk} "
        "--feature {wildcards.feature} --ahead {params.ahead:q} --log {log:q}"
