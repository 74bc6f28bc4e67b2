"""What the functions of the package call: heads on arrays of features, and the tasks of a loop of your own."""
