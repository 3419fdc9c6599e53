"""Real cases used as input of the synthesis."""
