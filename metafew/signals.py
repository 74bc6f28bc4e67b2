"""The signals that end a run in order. Imports no torch."""

from __future__ import annotations

import signal

OF_SCHEDULERS = [number for number in signal.Signals if number.name in ("SIGUSR1", "SIGUSR2")]
"""Those that ``sbatch --signal`` sends before the time limit; none on Windows."""
ENDING = [signal.SIGINT, signal.SIGTERM, *OF_SCHEDULERS]
