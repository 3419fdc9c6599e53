"""Training views for nnU-Net v2, made by a frozen foundation VAE from CT."""

__version__ = "0.1.0"
