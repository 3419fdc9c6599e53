"""Tumour synthesis: conditional diffusion in the latent space of a frozen VAE, with lesions blended into real CT."""
