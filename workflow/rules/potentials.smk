"""Labels by a teacher, which only potentials need.

REQUIRED INPUTS: shards of structures.
OUTPUTS: one shard of labels per chunk, by the teacher of the config.
"""


rule label:
    """Let the teacher compute energies, forces and stress of one chunk."""
    input:
        ancient(layout.structures("{chunk}")),
        beside("label"),
    output:
        layout.labels("{chunk}"),
    log:
        layout.logs / "label" / f"{{chunk}}-{layout.teacher_key}.log",
    conda:
        environment("training.yaml")
    resources:
        **asks("label"),
    params:
        config=merged_config,
    message:
        "Labelling chunk {wildcards.chunk}"
    shell:
        "OMP_NUM_THREADS={threads} atomloom label --config {params.config:q} --chunk {wildcards.chunk} --log {log:q}"
