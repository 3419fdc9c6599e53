"""The one exception that commands turn into a message and an exit status."""


class UserError(Exception):
    """Bad input or a missing prerequisite: the message says what was wrong, where, and what to do.

    Commands print the message without a traceback and exit with status 1.
    """
