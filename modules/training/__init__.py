"""Training: the DDPM objective, and what is fine-tuned with it. Knows nothing of jobs, pages or the gallery."""
