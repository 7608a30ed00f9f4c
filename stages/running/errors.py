"""The error that a user can mend, and how to mend what is damaged."""

from collections.abc import Collection
from pathlib import Path

MAX_CHARACTERS = 2000  # of a message: names and values of broken files can be of any length
MOST_NAMES = 20  # in a message


class InputError(ValueError):
    """A file, parameter or tensor that cannot be used.

    The message is one line: what is wrong, where (file, key, tensor), and what to do. Names and values come from files
    that may be broken or foreign: what is not printable in them, a line's end or a terminal's commands, is escaped.
    """

    def __init__(self, message: str) -> None:
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message[: MAX_CHARACTERS + 1])
        super().__init__(line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 1]}…")


class TooLongError(InputError):
    """An example that is none without what lies beyond the tokens that it is cut to."""


class DamagedError(InputError):
    """A file that is not as it was written; to be made or fetched again.

    Attributes:
        directory: what to make again; of a stage of the pipeline it is the output.
    """

    def __init__(self, message: str, directory: Path) -> None:
        super().__init__(f"{message}; make or fetch {directory} again")
        self._message = message
        self.directory = directory

    @property
    def in_a_pipeline(self) -> str:
        """The message, with what to do where a stage has made the directory."""
        remedy = f"remove {self.directory} and run `dvc repro`, after `make check-cache` if that does not mend it"
        return str(InputError(f"{self._message}; {remedy}"))


def said(error: InputError) -> str:
    """What a stage or command says of an error: one line."""
    return error.in_a_pipeline if isinstance(error, DamagedError) else str(error)


def first_names(names: Collection[str]) -> str:
    """Names in a message: the first of them, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return (", ".join(list(names)[:MOST_NAMES]) or "none") + more
