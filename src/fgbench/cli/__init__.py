"""Parse, call, print, exit code: one file per group of commands. Imports no torch by itself."""
