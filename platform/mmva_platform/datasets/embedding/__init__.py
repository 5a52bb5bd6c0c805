"""A dataset through frozen backbones, once."""
