"""Weights between a checkpoint and a bundle's data file: how they are stored, on the way in and on the way back."""
