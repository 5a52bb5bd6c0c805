"""The training loop: plain PyTorch, the same with and without Ray."""
