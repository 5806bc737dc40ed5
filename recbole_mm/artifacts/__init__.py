"""One store for everything costly and computed offline, and the loop that fills it."""
