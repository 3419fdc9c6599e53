"""Files that are checked where they are read, and whole where they are written."""
