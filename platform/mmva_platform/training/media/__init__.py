"""Media mode: tunes backbones on media, which a DataLoader's processes decode."""
