"""Evaluation of segmentations, reconstructions and generated CT, with statistics."""
