"""Convert the published CT-RATE and ReXGroundingCT to nnU-Net's raw format with reports, findings and patient folds."""
