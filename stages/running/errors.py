"""The error that a user can mend, and how to mend what is damaged."""

from pathlib import Path

MAX_CHARACTERS = 2000  # of a message: names and values of broken files can be of any length


class InputError(ValueError):
    """A file, parameter or tensor that cannot be used.

    The message is one line: what is wrong, where (file, key, tensor), and what to do. Names and values come from files
    that may be broken or foreign: what is not printable in them, a line's end or a terminal's commands, is escaped.
    """

    def __init__(self, message: str) -> None:
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message[: MAX_CHARACTERS + 1])
        super().__init__(line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 1]}…")


def anew(directory: Path) -> str:
    """What to do about a damaged file in the directory of a stage's output."""
    return f"remove {directory} and run `dvc repro`, after `make check-cache` if that does not mend it"
