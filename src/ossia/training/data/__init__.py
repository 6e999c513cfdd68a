"""Training data: examples, packing them into rows, and feeding rows to the trainer."""
