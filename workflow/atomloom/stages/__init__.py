"""The stages of the pipeline, one module each, in the order of the rules of the workflow.

A stage takes a `Layout` (and a `Plan`), reads and writes files at the places they name, and reports
through `log`. Everything a stage computes is done by the packages beside this one.
"""
