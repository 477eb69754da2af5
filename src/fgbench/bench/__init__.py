"""Is it fast: step times and memory of every trainer, side by side in one process."""
