"""From conversations and documents to the batches that a trainer asks for by number."""
