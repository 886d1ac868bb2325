"""Continuous batching: many requests, of different depths and lengths, through one engine."""
