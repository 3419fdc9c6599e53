"""Generation of synthetic cases: requests, painting of lesions and volumes, and output files."""
