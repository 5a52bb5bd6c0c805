"""The gate: which version may become champion, by rules on a fixed exam."""
