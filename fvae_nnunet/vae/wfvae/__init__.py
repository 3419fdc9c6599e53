"""WF-VAE."""
