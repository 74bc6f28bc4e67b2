"""The one exception that users are meant to see."""


class UsageError(Exception):
    """Something typed cannot be done. The text is one sentence: what was wanted, what came, what to type instead."""
