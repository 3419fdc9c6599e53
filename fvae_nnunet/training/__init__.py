"""What a trainer needs: views, synthetic cases, patches, and the VAE inside the training step."""
