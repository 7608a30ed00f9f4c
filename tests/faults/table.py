"""What was tried, and what survived it: fault × stage."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

TRIAL, REPEATED = "fault tried", "work repeated"


class Trials:
    """Notes a test's trials among the properties of its report, by which they also come from another process.

    Args:
        properties: of the test.
    """

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    @contextmanager
    def of(self, *columns: str) -> Iterator[list[str]]:
        """Faults are appended to what it yields; they have survived if the block ends well, all of them or none."""
        faults: list[str] = []
        survived = False
        try:
            yield faults
            survived = True
        finally:
            self._properties += [(TRIAL, [fault, column, survived]) for fault in faults for column in columns]

    def repeated(self, stage: str, whole: int, done: int, ends: int) -> None:
        """Note the work of a stage in one go, and in all its runs where it was ended so many times."""
        self._properties.append((REPEATED, [stage, whole, done, ends]))


def render(properties: Sequence[tuple[str, Any]]) -> str:
    """The table of all trials, as Markdown, and the work that was repeated."""
    tried: dict[str, Counter[str]] = defaultdict(Counter)
    survived: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, value in properties:
        if kind == TRIAL:
            fault, column, well = value
            tried[fault][column] += 1
            survived[fault][column] += well
    if not tried:
        return ""
    columns = sorted({column for counts in tried.values() for column in counts}, key=_order)
    rows = [["survived / tried", *columns]]
    for fault, counts in sorted(tried.items()):
        rows.append([fault, *(f"{survived[fault][name]} / {counts[name]}" if counts[name] else "" for name in columns)])
    total = [sum(sum(counts.values()) for counts in of.values()) for of in (survived, tried)]
    repeats = [
        f"{stage}: {done - whole} steps more than the {whole} in one go, after {ends} ends before the last"
        for kind, (stage, whole, done, ends) in ((kind, value) for kind, value in properties if kind == REPEATED)
    ]
    return "\n".join([*_aligned(rows), "", f"In all {total[0]} of {total[1]}.", *repeats])


def _order(column: str) -> int:
    """Stages as they follow each other."""
    from tests.faults.undisturbed import STAGES

    return list(STAGES).index(column) if column in STAGES else len(STAGES)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [
        f"| {lines[0]} |",
        f"|{'|'.join('-' * (width + 2) for width in widths)}|",
        *(f"| {it} |" for it in lines[1:]),
    ]
