"""Making a version: annotate, resume, update, retry."""
