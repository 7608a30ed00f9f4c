"""What the cells of a table of multiple choice say: a text, choices, which of them is right."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from stages.tasks.cells import spelled

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERED = re.compile(r"\(?([A-Z])[.):]\s*(.*)")  # a line of choices in one text
WHOLE = re.compile(r"(0|[1-9][0-9]{0,8})(\.0+)?")
NUMBERS = (int, float, Decimal, np.integer, np.floating)
READINGS = {  # how labels may be read, the most telling way first
    "own": "labels that choices have in the table",
    "text": "texts of choices",
    "scores": "scores of choices",
    "letter": "letters",
    "from 0": "positions from 0",
    "from 1": "positions from 1",
}


class UnusableError(Exception):
    """A row is no example; the message says why."""


class Choices(NamedTuple):
    """An example's choices.

    Attributes:
        texts: without white space around them.
        labels: what the table calls them, if it does.
        lines: as they are written with their letters, if they are.
    """

    texts: Sequence[str]
    labels: Sequence[str] = ()
    lines: Sequence[str] = ()


def text_in(cell: object, name: str) -> str:
    """A text without white space around it. Raises `UnusableError` if it is none, or empty."""
    if not isinstance(cell, str):
        raise UnusableError(f"{name} is no text")
    if not (text := cell.strip()):
        raise UnusableError(f"{name} is empty")
    return text


def choices_in(row: Mapping[str, Any], columns: str | Sequence[str] | Mapping[str, str]) -> Choices:
    """The choices of a row in one column or in several, or those of all rows by label; see `MultipleChoice`.

    Raises:
        UnusableError: there are no choices, or only one, or one is no text, empty or there twice.
    """
    if isinstance(columns, Mapping):
        return Choices(list(columns.values()), labels=list(columns))
    if isinstance(columns, str):
        found = _in_one_cell(row[columns], columns)
    else:
        found = Choices([text_in(row[name], name) for name in columns])
    if len(found.texts) < 2:
        raise UnusableError(f"{columns} has {len(found.texts)} choices; there must be two at least")
    for place, text in enumerate(found.texts):
        if text in found.texts[:place]:
            raise UnusableError(f"the choice {text!r} is there twice")
    return found


def _in_one_cell(cell: object, name: str) -> Choices:
    if isinstance(cell, Mapping) and "text" in cell and _is_list(cell["text"]):
        texts, labels = _texts(cell["text"], name), _labels(cell.get("label"), name)
        if labels and (len(labels) != len(texts) or len(set(labels)) < len(labels)):
            raise UnusableError(f"{name} has {len(texts)} texts and the labels {', '.join(labels)}, not one for each")
        return Choices(texts, labels=labels)
    if isinstance(cell, Mapping):
        return Choices(_texts(list(cell), name))
    if _is_list(cell):
        return Choices(_texts(cell, name))
    if isinstance(cell, str):
        return _lettered(cell, name)
    raise UnusableError(f"{name} is no list of choices")


def _labels(cell: object, name: str) -> list[str]:
    """What a cell calls its choices; nothing where it has no list of labels."""
    if cell is None:
        return []
    if not _is_list(cell):
        raise UnusableError(f"the labels of {name} are no list")
    found = [spelled(label) for label in cell]  # type: ignore[attr-defined]  # it is a list
    if None in found:
        raise UnusableError(f"{name} has a choice without a label")
    return [str(label) for label in found]


def _is_list(cell: object) -> bool:
    return isinstance(cell, (list, tuple, np.ndarray))


def _texts(cells: Any, name: str) -> list[str]:
    return [text_in(cell, f"choice {place} of {name}") for place, cell in enumerate(cells, start=1)]


def _lettered(text: str, name: str) -> Choices:
    """The choices in a text with a line for each, which begins with its letter."""
    lines = [line.strip() for line in text.strip().split("\n")]
    found = [LETTERED.fullmatch(line) for line in lines]
    for letter, line, match in zip(LETTERS, lines, found, strict=False):
        if match is None or match[1] != letter:
            raise UnusableError(
                f"{name} is no list, and a text whose line {line[:40]!r} does not begin with {letter!r}"
            )
    texts = _texts([match[2] for match in found if match is not None], name)
    if len(texts) > len(LETTERS):
        raise UnusableError(f"{name} has more choices than there are letters")
    return Choices(texts, lines=lines)


def positions(label: object, choices: Choices) -> dict[str, int]:
    """How a label may be read → the position of the choice that it then says is right. See `READINGS`.

    Raises:
        UnusableError: there is no label.
    """
    if isinstance(label, Mapping):
        return _scored(label, choices)
    found = {}
    written = (spelled(label) or "").strip()
    if not written:
        raise UnusableError("has no label")
    if written in choices.labels:
        found["own"] = choices.labels.index(written)
    for texts in (choices.lines, choices.texts):
        if isinstance(label, str) and written in texts:
            found["text"] = texts.index(written)
    if not choices.labels:
        if len(written) == 1 and written.upper() in LETTERS[: len(choices.texts)]:
            found["letter"] = LETTERS.index(written.upper())
        if (number := _whole(label)) is not None:
            found |= {"from 0": number} if number < len(choices.texts) else {}
            found |= {"from 1": number - 1} if 1 <= number <= len(choices.texts) else {}
    return found


def _scored(scores: Mapping[str, object], choices: Choices) -> dict[str, int]:
    """The place of the one choice whose score is 1, where the others' are 0."""
    right = [str(text).strip() for text, score in scores.items() if score == 1]
    known = all(str(text).strip() in choices.texts for text in scores)
    only = len(right) == 1 and all(score in (0, 1) for score in scores.values())
    return {"scores": choices.texts.index(right[0])} if known and only else {}


def _whole(label: object) -> int | None:
    """The whole number that a label is, from 0; truth is none."""
    if isinstance(label, str):
        match = WHOLE.fullmatch(label.strip())
        return int(match[1]) if match else None
    if isinstance(label, NUMBERS) and not isinstance(label, bool) and 0 <= label < 10**9 and label == int(label):
        return int(label)
    return None
