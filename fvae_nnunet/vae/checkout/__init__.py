"""VAEs that run from a checkout of the authors' code."""
