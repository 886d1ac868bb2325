"""Starts a Triton server on this machine, and ends it."""
