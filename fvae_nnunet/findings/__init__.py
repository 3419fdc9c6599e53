"""Classification of findings: training on real and synthetic cases, and comparison by AUC."""
