"""The `ossia` command, one file a subcommand. Heavy imports (torch) are made inside the commands that need them."""
