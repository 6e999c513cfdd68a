"""`ossia train`: one file a command."""
