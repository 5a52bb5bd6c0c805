"""Sources: labeled collections that a dataset is built from."""
