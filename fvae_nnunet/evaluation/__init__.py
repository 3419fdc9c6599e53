"""Evaluation of segmentations, reconstructions and generated CT, and its statistics."""
