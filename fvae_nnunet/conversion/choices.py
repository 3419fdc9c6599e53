"""What the options of the conversion can be; without imports, so that a command's help is quick."""

VALUES = ("auto", "hu", "stored")
"""Of ``hounsfield.to_hu``."""

GEOMETRIES = ("auto", "header", "metadata")
"""Of ``headers.true_geometry``."""

PROGRAMS = ("totalsegmentator", "vista3d")
"""Whose masks ``structures.StructureMasks`` reads."""
