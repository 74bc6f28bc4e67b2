"""Errors that a user can correct."""


class UsageError(Exception):
    """An error that the user can correct. The message says what was expected, what was given, and what to type."""


class Diverged(UsageError):
    """Raised when training or adaptation produces values that are not finite."""


def reason(error: BaseException) -> str:
    """Return the message of ``error`` on one line, to quote in another message; its class name if it has none."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
