"""The commands around an experiment: one module each, with a function ``main`` that takes a command line."""
