"""VAEs that run from a checkout of their authors' code."""
