"""Where nnU-Net's preprocessing is used to put a reconstruction through the same steps as the raw case."""
