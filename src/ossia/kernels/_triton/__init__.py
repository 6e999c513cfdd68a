"""Device code in Triton, imported only where a GPU runs it."""
