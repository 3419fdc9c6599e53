"""CT-RATE and ReXGroundingCT as published, to nnU-Net's raw format with reports, findings and splits by patient."""
