"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in the user's input, with a one-line message that names the remedy.

    The command line prints the message without a traceback and exits with 2;
    from Python it is an ordinary exception.
    """
