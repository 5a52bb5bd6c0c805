"""Sound: bytes to mono samples."""
