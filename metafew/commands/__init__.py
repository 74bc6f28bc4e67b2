"""The implementation of scripts/: one module per script, with a function ``main`` that takes a command line."""
