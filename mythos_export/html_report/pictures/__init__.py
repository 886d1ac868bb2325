"""Pictures as inline SVG: pure functions of numbers, each a figure wide enough for a phone."""
