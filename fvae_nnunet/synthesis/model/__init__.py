"""The latent diffusion model: network, conditions, noise, sampling, and its folder."""
