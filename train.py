"""Run an experiment: python train.py head=svm norm=tasknorm (see --help)."""

from metafew.cli import main

if __name__ == "__main__":
    main()
