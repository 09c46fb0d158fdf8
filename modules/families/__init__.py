"""Model families: how the files of one architecture become a `Model` (family.py)."""
