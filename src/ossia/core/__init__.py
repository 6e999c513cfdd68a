"""Errors, paths and other things without domain knowledge."""
