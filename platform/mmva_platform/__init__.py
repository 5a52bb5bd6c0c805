"""Everything of MMVA that runs on a cluster: datasets, training, tracking, annotation, and their command line."""
