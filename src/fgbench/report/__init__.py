"""The report: one self-contained HTML page about a results folder. Loads without torch."""
