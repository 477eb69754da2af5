"""The networks, each an ``nn.Sequential`` of stages in a file of its own; ``options`` loads without torch."""
