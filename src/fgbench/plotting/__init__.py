"""Pictures of runs. Imports no torch."""
