"""Ray Train: the recipe, its data, the loop, its checkpoints, evaluation."""
