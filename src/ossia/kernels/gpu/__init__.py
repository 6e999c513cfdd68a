"""GPU kernels' wrappers, each beside its torch reference; the device code is in _cuda and _triton."""
