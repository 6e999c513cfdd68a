"""CUDA C++ sources, compiled at run time; `driver` loads and launches them."""
