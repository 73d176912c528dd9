"""Use of trained potentials: evaluation of many structures at once, dynamics, labels from teachers,
files of other programs. It knows nothing of Snakemake or of stages."""
