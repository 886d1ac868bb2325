"""Triton Inference Server: writes model repositories, starts servers, and is what runs inside them."""
