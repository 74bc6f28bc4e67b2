"""Implementation of the functions of the package: heads on arrays of features, and tasks for your own training loop."""
