"""Properties of a device: its memory and its numerical precision."""
