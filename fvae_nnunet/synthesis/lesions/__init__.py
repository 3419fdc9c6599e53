"""Lesions: shapes, sizes, places, looks, and their quality."""
