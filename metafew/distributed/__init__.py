"""Several processes, and several runs."""
