"""One file per source of images; ``base`` turns each into splits on the device, ``options`` without torch."""
