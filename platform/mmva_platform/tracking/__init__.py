"""MLflow: runs, registry, gate, promotion."""
