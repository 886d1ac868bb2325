"""Writes model repositories, and what deploys them."""
