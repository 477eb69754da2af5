"""The networks: each an ``nn.Sequential`` of stages, written in a file of its own. Imports no torch."""
