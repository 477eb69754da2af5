"""One run: build, train, write, resume."""
