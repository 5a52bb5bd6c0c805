"""Decode pictures to upright RGB."""
