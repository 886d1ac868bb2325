"""A decoder without a loop: the smallest family, which shows what the frame does not take for granted."""
