"""Token shards: written, read, and in which order."""
