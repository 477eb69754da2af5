"""What a run leaves behind, written so that a crash loses nothing. Importing it loads no torch."""
