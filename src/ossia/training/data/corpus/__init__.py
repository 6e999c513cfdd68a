"""A folder of cleaned text with its report and card: made, and read."""
