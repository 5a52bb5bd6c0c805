"""The towers, the model, and its bundle on disk."""
