"""Figures of runs. Loads without torch."""
