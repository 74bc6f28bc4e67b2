"""Few-shot meta-learning experiments: any head, any normalization, any backbone, one command line."""
