"""One operation a file: the wrapper that picks an implementation, beside its readable torch reference."""
