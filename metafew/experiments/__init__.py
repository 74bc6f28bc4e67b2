"""Published tables and figures, each one command: its runs, what came out, and whether that bears out the paper."""
