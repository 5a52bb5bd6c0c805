"""Catalog -> plan -> execute -> commit -> publish; verify, status."""
