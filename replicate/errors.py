"""The one exception that a person, rather than a programmer, is meant to read."""


class UserError(Exception):
    """A mistake in the input, told in one line: the file, key or value at fault, and what would be right.

    The command line prints the message alone and exits with status 2; every other exception keeps its
    traceback.
    """
