"""The reconstruction of whole CT volumes by a frozen VAE."""
