"""Comparison of a bundle with PyTorch, and its report."""
