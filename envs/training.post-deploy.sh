# Runs in the new environment, which holds the packages. atomloom itself is that of the Snakemake that starts a job,
# wherever it is installed: the rules say where by ATOMLOOM_LENT.
cat > "$CONDA_PREFIX/bin/atomloom" <<END
#!/bin/sh
PYTHONPATH="\$ATOMLOOM_LENT" exec "$CONDA_PREFIX/bin/python" -P -m atomloom "\$@"
END
chmod +x "$CONDA_PREFIX/bin/atomloom"
