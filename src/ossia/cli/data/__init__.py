"""`ossia data`: text for training, filtered, documented, and cut into shards."""

from ossia.cli.data.group import app

__all__ = ["app"]
