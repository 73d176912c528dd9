"""Many runs that differ in some keys, and the best of them: `snakemake sweep`.

REQUIRED INPUTS: those of a run, for each trial its own index and split.
OUTPUTS: a folder a sweep: trials, their results, the table, its figures and page, the best config.
Trials are ordinary runs: what they leave is where a run by hand would have it.
"""

SWEEPS = layout.results / "sweeps"


checkpoint suggest:
    """Choose the trials of a round: by the section `sweep`, or by the results of the rounds before."""
    input:
        # ancient: what was chosen stays, also where a result is made again
        ancient(lambda wildcards: last_results_of(range(int(wildcards.round)))),
        plan=ancient(PLAN),
    output:
        SWEEPS / "{sweep}" / "round-{round}.json",
    log:
        layout.logs / "suggest" / "{sweep}-{round}.log",
    conda:
        environment("training.yaml")
    resources:
        **asks("suggest"),
    params:
        config=merged_config,
    message:
        "Choosing the trials of round {wildcards.round}"
    shell:
        "atomloom suggest --config {params.config:q} --round {wildcards.round} --log {log:q}"


rule trial:
    """Train one run of a trial to the end of a rung; one that fails is a result, too."""
    input:
        ancient(needed_by_slot),
    output:
        SWEEPS / "{sweep}" / "trials" / "{slot}.json",
    log:
        layout.logs / "trial" / "{sweep}" / "{slot}.log",
    wildcard_constraints:
        slot=r"\d+-\d+-\d+-\d+",
    conda:
        environment("training.yaml")
    threads: SWEEP.threads if SWEEP else 1
    resources:
        **asks("trial", TRIAL_GPUS),
    params:
        config=merged_config,
    message:
        "Trial {wildcards.slot} of the sweep"
    shell:
        "atomloom trial --config {params.config:q} --slot {wildcards.slot} --threads {threads} --log {log:q}"


rule refit:
    """Train the best trial on training and validation rows, and evaluate it on the test set."""
    input:
        lambda wildcards: last_results_of(range(rounds(SWEEP))),
    output:
        SWEEPS / "{sweep}" / "refit.json",
    log:
        layout.logs / "refit" / "{sweep}.log",
    conda:
        environment("training.yaml")
    threads: SWEEP.threads if SWEEP else 1
    resources:
        **asks("refit", TRIAL_GPUS),
    params:
        config=merged_config,
    message:
        "Training the best trial on training and validation rows"
    shell:
        "atomloom refit --config {params.config:q} --threads {threads} --log {log:q}"


rule tabulate:
    """Compare the trials of a sweep."""
    input:
        lambda wildcards: last_results_of(range(rounds(SWEEP))),
        refit_of,
    output:
        SWEEPS / "{sweep}" / "sweep.json",
        SWEEPS / "{sweep}" / "sweep.parquet",
        report(
            SWEEPS / "{sweep}" / "sweep.csv",
            caption="../report/trials.rst",
            category="Sweep",
            labels={"result": "table of trials"},
        ),
        report(
            SWEEPS / "{sweep}" / "sweep.html",
            caption="../report/sweep.rst",
            category="Sweep",
            labels={"result": "figures and trials"},
        ),
        SWEEPS / "{sweep}" / "best.yaml",
    log:
        layout.logs / "sweep" / "{sweep}.log",
    conda:
        environment("training.yaml")
    resources:
        **asks("tabulate"),
    params:
        config=merged_config,
    message:
        "Writing {output[3]}"
    shell:
        "atomloom sweep --config {params.config:q} --log {log:q}"


rule sweep:
    """All trials of the section `sweep`, and which is best."""
    input:
        swept,
