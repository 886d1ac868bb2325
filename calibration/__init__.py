"""Data -> ranges per depth -> a recipe: which tensors, which scales. Nothing here yet."""
