"""train.py, but that evaluation embeds the images of every task, also where they could be known from the first on."""

import metafew.evaluation.evaluator
from metafew.cli import main

if __name__ == "__main__":
    metafew.evaluation.evaluator.pays = lambda *_: False
    main()
