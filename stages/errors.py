"""The error that a user can mend."""


class InputError(ValueError):
    """A file, parameter or tensor that cannot be used.

    The message is one line: what is wrong, where (file, key, tensor), and what to do.
    """
