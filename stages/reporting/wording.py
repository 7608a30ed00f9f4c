"""Numbers and names as the report writes them."""

import re
from collections.abc import Sequence

from stages.results.shown import MISSING

MEAN = "mean of tasks"  # the title of a column beside those of tasks, whose names have no spaces
UNBROKEN = "\u00a0"  # a space at which a browser does not break the line


def p_value(value: float) -> str:
    """A p-value with three decimals, or that it is smaller: `p = 0.012`."""
    return f"p{UNBROKEN}<{UNBROKEN}0.001" if value < 0.001 else f"p{UNBROKEN}={UNBROKEN}{value:.3f}"


def plain(value: object) -> str:
    """Any value of a setting."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def share(λ: float) -> str:
    """A λ with at most three digits."""
    return f"{λ:.3g}"


def number_of(count: int, noun: str) -> str:
    """A count with its noun: `1 merge`, `3 merges`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listing(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|&~])", r"\\\1", " ".join(text.split()))
