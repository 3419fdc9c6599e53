"""Training of the latent diffusion model."""
