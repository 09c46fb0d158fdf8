"""What is kept of a generation: names, files."""
