"""LeanVAE."""
