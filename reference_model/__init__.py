"""Models in plain PyTorch, the oracle of every export, and what they are made of, as plain data."""
