"""One file per rule that gives gradients. Imports no torch by itself."""
