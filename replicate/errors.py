"""The exception for mistakes in the user's input."""


class UserError(Exception):
    """A mistake in the input. The message is one line: the file, key or value, and what would be right.

    The command line prints the message alone and exits with status 2; every other exception keeps its
    traceback.
    """
