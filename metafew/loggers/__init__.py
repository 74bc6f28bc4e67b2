"""Loggers: metrics.csv, Weights & Biases and TensorBoard."""
