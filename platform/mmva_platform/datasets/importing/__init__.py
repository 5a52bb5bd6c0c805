"""Import: sources to an immutable dataset."""
