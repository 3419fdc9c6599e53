"""What a CT volume is: HU, axes, noise, boxes, and its files."""
