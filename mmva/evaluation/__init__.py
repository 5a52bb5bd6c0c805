"""Evaluation of a model: metrics, retrieval, bootstrap, intervals, drift."""
