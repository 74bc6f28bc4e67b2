"""Datasets: their base class, and one module for each."""

from metafew.data.sources.source import LUMA, SPLITS, Category, Source, shipped_split

__all__ = ["LUMA", "SPLITS", "Category", "Source", "shipped_split"]
