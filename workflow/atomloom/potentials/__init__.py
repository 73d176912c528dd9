"""What potentials are for once they are trained: evaluation of many structures at once, dynamics,
labels from teachers, files of other programs. It knows nothing of Snakemake and of stages."""
