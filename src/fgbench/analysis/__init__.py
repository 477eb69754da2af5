"""Run directories read, grouped and compared. Imports no torch."""
