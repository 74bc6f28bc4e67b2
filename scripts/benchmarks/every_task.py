"""train.py, but that evaluation embeds the images of every task, also where they could be known from the first on."""

import metafew.learner
from metafew.cli import main

if __name__ == "__main__":
    metafew.learner.pays = lambda *_: False
    main()
