"""What the user may set: the schema and its file."""
