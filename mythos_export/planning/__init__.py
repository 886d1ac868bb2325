"""Will it fit, and how fast can it possibly be: sizes and bounds from a config, no graph traced and no weight read."""
