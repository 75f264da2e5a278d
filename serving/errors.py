"""The one error a user sees for bad input: a single line, exit code 2."""


class InputError(ValueError):
    """Bad input from a user. The message names the field, the value, the row or file, and the
    remedy, in one line; command line tools print it without a traceback and exit with 2."""
