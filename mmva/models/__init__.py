"""The towers, the model, and the bundle that it is on disk."""
