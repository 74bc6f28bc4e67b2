"""Set how multiprocessing starts processes; Python imports this first in the processes that tests launch."""

import multiprocessing
import os

multiprocessing.set_start_method(os.environ["METAFEW_START_METHOD"], force=True)
