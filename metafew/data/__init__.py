"""Datasets, samplers of tasks, and the LightningDataModule."""
