"""One file per source of images; ``base`` says what a dataset is and turns it into splits on the device."""
