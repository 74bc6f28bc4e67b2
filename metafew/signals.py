"""The signals that end a run gracefully. Imports no torch."""

from __future__ import annotations

import signal

OF_SCHEDULERS = [number for number in signal.Signals if number.name in ("SIGUSR1", "SIGUSR2")]
"""The signals usually chosen for ``sbatch --signal``, which sends them before the time limit; none on Windows."""
ENDING = [signal.SIGINT, signal.SIGTERM, *OF_SCHEDULERS]
