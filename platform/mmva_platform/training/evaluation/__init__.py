"""Evaluation of models, and the model card."""
