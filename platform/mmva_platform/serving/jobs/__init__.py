"""Annotation jobs of the API: a queue in storage, a runner that submits them to the bulk cluster, their progress."""
