"""The commands: parse, call the library, print, return an exit status."""
