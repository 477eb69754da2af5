"""From YAML to checked options. Loads without torch."""
