"""What goes in: the manifest, and the documents of its files."""
