"""nnU-Net's preprocessing, applied to reconstructions and synthetic cases."""
