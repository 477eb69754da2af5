"""What trainers share that train a model block by block."""
