"""Figures and tables of one checkpoint."""
