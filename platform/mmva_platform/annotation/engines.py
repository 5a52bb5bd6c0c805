"""Which engine computes a modality's embeddings: chosen once by calibration, recorded in the plan, obeyed by workers."""
