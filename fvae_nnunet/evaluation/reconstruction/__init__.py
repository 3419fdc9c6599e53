"""Effects of reconstruction on CT images."""
