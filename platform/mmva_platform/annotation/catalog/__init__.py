"""Catalogs: the items to annotate, and the roots that media may be read from."""
