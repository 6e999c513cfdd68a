"""Training: data, losses, optimizers and the loops that use them."""
