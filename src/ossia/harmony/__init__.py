"""The harmony format: tokens, messages, rendering and parsing. Pure text and token ids; no torch."""
