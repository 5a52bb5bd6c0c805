"""Decode sound to mono samples."""
