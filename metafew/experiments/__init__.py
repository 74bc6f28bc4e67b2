"""Published tables and figures, one command each: the runs, their results, and whether the paper's claims hold."""
