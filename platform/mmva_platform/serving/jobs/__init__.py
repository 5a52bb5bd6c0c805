"""Annotation jobs of the API: the queue in storage, the runner that submits to the bulk cluster, the progress."""
