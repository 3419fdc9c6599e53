"""Quality of predicted segmentations: DSC, NSD, HD95, lesions, and comparison of models."""
