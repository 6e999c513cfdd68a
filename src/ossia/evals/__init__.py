"""Evaluation: running tasks against a model and reporting what came out."""
