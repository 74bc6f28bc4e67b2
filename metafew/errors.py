"""Errors that a user can correct."""


class UsageError(Exception):
    """An error that the user can correct. The message says what was expected, what was given, and what to type."""


class Diverged(UsageError):
    """Raised when training or adaptation produces values that are not finite."""
