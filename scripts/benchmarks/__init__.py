"""What scripts/benchmark.py measures, one kind of row a file."""
