"""The exceptions that users are meant to see."""


class UsageError(Exception):
    """An error of the user, whose text says what was expected, what came, and what to type."""


class Diverged(UsageError):
    """Training or adaptation reached numbers that are not finite."""
