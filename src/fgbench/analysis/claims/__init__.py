"""Published statements, held against runs. Imports no torch."""
