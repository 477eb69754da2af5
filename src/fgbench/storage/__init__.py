"""The files of a run, written so that a crash loses nothing. Importing it loads no torch."""
