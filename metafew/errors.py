"""Errors that a user can correct."""


class UsageError(Exception):
    """A request that cannot be met. The message says what was expected, what came, and what to type."""


class Diverged(UsageError):
    """Training or adaptation produced values that are not finite."""
