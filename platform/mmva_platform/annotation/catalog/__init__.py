"""Catalogs: what is to be annotated, and where media may be read from."""
