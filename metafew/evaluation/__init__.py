"""Measurements on tasks."""
