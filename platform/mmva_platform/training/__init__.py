"""Training and evaluation: the recipe, the loop, Ray Train around it, and what a trained model is measured by."""
