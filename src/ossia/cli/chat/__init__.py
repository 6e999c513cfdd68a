"""`ossia chat`: command (options, pipe) > loop (the prompt, slash commands) > session (the conversation), display."""
