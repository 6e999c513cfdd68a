"""What is kept of a document, and of many that are alike."""
