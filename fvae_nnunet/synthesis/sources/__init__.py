"""The real cases that synthesis starts from."""
