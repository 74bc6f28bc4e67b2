"""Several processes that share one run, and sweeps of many runs."""
