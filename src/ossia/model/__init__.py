"""The gpt-oss architecture, its checkpoints and plain generation."""
