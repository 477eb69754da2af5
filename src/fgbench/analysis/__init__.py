"""Run directories read, grouped and compared. Loads without torch."""
