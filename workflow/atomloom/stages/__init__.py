"""The stages of the pipeline, one module each, in the order of the rules of the workflow.

A stage takes a `Layout` (and a `Plan`), reads and writes files at their paths, and reports through
`log`. All computing is done by the other packages.
"""
