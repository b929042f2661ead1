"""The error that reaches a person as one sentence instead of a traceback."""


class UserError(ValueError):
    """What was wrong, where, and what to do about it, in one sentence."""
