"""Sources of images: the protocol of a dataset, and one module for each dataset."""

from metafew.data.sources.source import LUMA, SPLITS, Category, Source, shipped_split

__all__ = ["LUMA", "SPLITS", "Category", "Source", "shipped_split"]
