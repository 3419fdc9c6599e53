"""CT volumes: HU, axes, geometry, noise, boxes, and image files."""
