"""What stages and results have cost, as data."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a stage has cost.

    Attributes:
        stage: its name.
        what: what it did, in a few words.
        flops: floating-point operations, counted or estimated, or None.
        seconds: of wall-clock time, measured, or None.
        runs_on: the hardware.
    """

    stage: str
    what: str
    flops: float | None
    seconds: float | None
    runs_on: str


@dataclass(frozen=True)
class ResultCost:
    """What a result has cost.

    Attributes:
        name: the model's, merge's or baseline's.
        needed: all stages that it needs, itself among them.
        inference: FLOPs per example when it is used.
    """

    name: str
    needed: Sequence[Cost]
    inference: float
