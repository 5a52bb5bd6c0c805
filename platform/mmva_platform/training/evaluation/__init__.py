"""What a model is measured by, and the model card."""
