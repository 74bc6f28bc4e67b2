"""The command line: its YAML files, overrides, option types, and the code that a checkpoint may call."""
