"""How a backbone is adapted to a support set and labels queries. One method a file."""
