"""The prompt language: text in, plain data out. Knows no torch."""
