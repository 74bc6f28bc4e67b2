"""Where a run is logged."""
