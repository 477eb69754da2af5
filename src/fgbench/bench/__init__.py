"""Step times and memory of every trainer, alternating in one process."""
