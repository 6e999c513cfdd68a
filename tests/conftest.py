"""Settings of all tests."""

from hypothesis import settings

# No test asserts a time, and machines differ: an example may take as long as it takes.
settings.register_profile("unhurried", parent=settings(), deadline=None)
settings.load_profile("unhurried")
