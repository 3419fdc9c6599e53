"""Reading of files with checks, and atomic writing."""
