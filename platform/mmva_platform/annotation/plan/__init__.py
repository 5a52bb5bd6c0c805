"""The plan of a version: a catalog cut into shards."""
