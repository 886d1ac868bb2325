"""What Triton's Python backend runs: the generator, and the graph by itself."""
