"""What model families are built of: norms, rotary positions, attention, feed-forwards, blocks."""
