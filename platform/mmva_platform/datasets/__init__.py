"""Labeled media: import -> check -> shards -> embeddings, once per backbone."""
