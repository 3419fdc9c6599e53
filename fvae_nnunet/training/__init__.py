"""Components of the trainers: views, synthetic cases, patches, and the VAE inside the training step."""
