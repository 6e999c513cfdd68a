"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# No test asserts a time, and machines differ: an example may take as long as it takes, and so may making one.
settings.register_profile("unhurried", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
