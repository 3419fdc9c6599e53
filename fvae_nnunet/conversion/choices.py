"""Choices for the conversion options; no imports here, so that the help of a command starts fast."""

VALUES = ("auto", "hu", "stored")
"""Modes of ``hounsfield.to_hu``."""

GEOMETRIES = ("auto", "header", "metadata")
"""Modes of ``headers.true_geometry``."""

PROGRAMS = ("totalsegmentator", "vista3d")
"""Programs whose masks ``structures.StructureMasks`` reads."""
