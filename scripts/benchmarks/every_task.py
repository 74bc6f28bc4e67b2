"""Run train.py with an evaluation that embeds the images of every task, even if features could be cached."""

import metafew.evaluation.evaluator
from metafew.cli import main

if __name__ == "__main__":
    metafew.evaluation.evaluator.is_worthwhile = lambda *_: False
    main()
