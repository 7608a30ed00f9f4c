"""What models give for examples, once it is no tensor any more: arrays, and texts to look at. Read without torch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Written(NamedTuple):
    """What a model writes for an example, to look at.

    Attributes:
        prompt: what it reads.
        reference: what stands there in the example.
        text: what it writes.
    """

    prompt: str
    reference: str
    text: str


class Tested(NamedTuple):
    """What an evaluation gets of a model on a task's test examples.

    Attributes:
        outputs: that metrics take, [examples, …].
        targets: that metrics compare them with, [examples, …].
        written: what the model writes for the first examples, where it writes.
        said: by key of origin.json, a number that a reader of the result should know.
    """

    outputs: np.ndarray
    targets: np.ndarray
    written: Sequence[Written]
    said: Mapping[str, int]


def padded(rows: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Arrays as one, [rows, …]; their first axes may be of different lengths, and are filled up to the longest."""
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    found = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
    for row, own in zip(found, rows, strict=True):
        row[: len(own)] = own
    return found
