"""What is done to finished pictures: upscaling. Knows nothing of how they were made."""
