"""Many runs: side by side on this machine, on a Ray cluster, or in search of a learning rate."""
