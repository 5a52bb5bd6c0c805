"""Training and evaluation: the recipe, the loop, Ray Train around it, and the evaluation of trained models."""
