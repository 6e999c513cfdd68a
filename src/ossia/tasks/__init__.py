"""Tasks: problem generators with graders, used by evaluation and training alike."""
