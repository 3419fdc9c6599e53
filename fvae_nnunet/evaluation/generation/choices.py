"""Choices of ``fvae-evaluate-generation``; no imports here, so that the help of a command starts fast."""

METRICS = ("fvd", "fid2.5d", "kid", "ctclip", "masks", "memorisation")
"""Metrics in the order of tables; see docs/generation_quality.md."""
