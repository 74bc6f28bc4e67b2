"""Published tables and figures, one command each: runs, results, and verdicts on the papers' claims."""
