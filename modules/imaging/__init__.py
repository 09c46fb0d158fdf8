"""Pictures as PIL images: decoding foreign ones, previews. Knows no torch."""
