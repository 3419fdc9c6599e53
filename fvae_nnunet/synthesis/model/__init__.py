"""The latent diffusion model: network, conditions, noise process, sampling, and model folder."""
