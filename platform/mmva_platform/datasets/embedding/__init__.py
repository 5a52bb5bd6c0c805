"""The embeddings of a dataset by frozen backbones."""
