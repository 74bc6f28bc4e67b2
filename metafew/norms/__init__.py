"""Normalization schemes. One a file; a scheme is its ``moments(own, context)``."""
