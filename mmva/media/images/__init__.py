"""Pictures: bytes to upright RGB."""
