"""The machine, its libraries and processes."""
