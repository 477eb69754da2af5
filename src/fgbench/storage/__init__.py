"""What a run leaves behind, written so that a crash loses nothing. Imports no torch by itself."""
