"""The command line's words: the YAML files behind them, overrides, option types, and what a checkpoint may call."""
