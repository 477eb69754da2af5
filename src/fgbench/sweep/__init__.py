"""Many runs: in parallel on this machine, on a Ray cluster, or to tune a learning rate."""
