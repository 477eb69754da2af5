"""From YAML to checked options. Imports no torch."""
