"""Objectives: what a training step minimises. One objective per file."""
