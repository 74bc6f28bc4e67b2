"""Normalization schemes, one per file, each defined by ``moments(own, context)``."""
