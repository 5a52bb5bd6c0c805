"""`mmva`: one module per noun, no logic."""
