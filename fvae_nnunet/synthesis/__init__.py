"""Tumour synthesis: conditional latent diffusion in a frozen VAE's latent space, placed and blended into real CT."""
