"""IV-VAE."""
