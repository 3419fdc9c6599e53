"""How good predicted segmentations are: DSC, NSD, HD95, lesions, and comparison of models."""
