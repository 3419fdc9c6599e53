"""Synthetic cases: what is asked for, painted and written."""
