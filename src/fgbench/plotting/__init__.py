"""Pictures of runs. Loads without torch."""
