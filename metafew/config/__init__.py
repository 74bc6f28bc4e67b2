"""The words of the command line and the folder of YAML files behind them."""
