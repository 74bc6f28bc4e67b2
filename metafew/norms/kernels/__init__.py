"""Normalization in few passes over memory, with hand-written derivatives; :mod:`metafew.norms.fast` calls it."""
