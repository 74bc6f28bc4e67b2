"""Lightning callbacks: checkpoints, signals, losses that are not finite, clustering measures, and progress."""
