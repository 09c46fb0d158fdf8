"""Which model files exist, and what their headers say."""
