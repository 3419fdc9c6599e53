"""Reconstruction of whole CT volumes by a frozen VAE."""
