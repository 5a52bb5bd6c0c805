"""Ray Train around the loop: launching, workers, checkpoints."""
