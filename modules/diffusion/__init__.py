"""The mathematics of diffusion: schedules, samplers, noise, guidance. Torch only, no model, no request."""
