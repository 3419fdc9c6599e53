"""Lesions: shapes, sizes, places, appearance and quality control."""
