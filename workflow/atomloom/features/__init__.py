"""Derived features: numbers that follow from a structure alone, by tables of elements or by a potential.

Each source is one module with a class (`features.base.Source`). They know structures, not files or chunks.
"""
