"""Set how multiprocessing starts processes; Python imports this first in the processes that tests launch."""

import multiprocessing
import os

if method := os.environ.get("METAFEW_START_METHOD"):  # pytest imports this too
    multiprocessing.set_start_method(method, force=True)
