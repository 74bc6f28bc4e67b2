"""Heads: how a backbone is adapted to a support set and classifies queries. One method per file."""
