"""Batched, differentiable solvers: pure functions of tensors, one problem per file."""
