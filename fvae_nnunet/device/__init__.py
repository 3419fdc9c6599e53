"""What a device has and does: its memory, and in what precision it really computes."""
