"""A metric's values and differences, as people read them."""

import math

from stages.tasks.metrics import Metric

MISSING = "–"
MINUS = "\u2212"
DIGITS = 4  # of a number that is no share
NOTHING = 1e-12  # what sums of the same numbers in another order may differ by


def percent(value: float) -> str:
    """A share in per cent, with one decimal."""
    return f"{100 * value:.1f}"


def shown(metric: Metric, value: float | None) -> str:
    """A value of the metric without its unit: a share in per cent, a number with four digits."""
    if value is None:
        return MISSING
    return percent(value) if metric.unit == "share" else _digits(value).replace("-", MINUS)


def shown_difference(metric: Metric, difference: float) -> str:
    """A difference, with its sign: of shares in percentage points; what is shown as zero has no sign."""
    if metric.unit == "share":
        text = f"{100 * difference:+.1f}"
        return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)
    return "0" if abs(difference) < NOTHING else _digits(difference, sign="+").replace("-", MINUS)


def is_shown_as_zero(metric: Metric, difference: float) -> bool:
    """Whether a difference is too small to be seen in what `shown_difference` makes of it."""
    return shown_difference(metric, difference) in ("0.0", "0")


def with_unit(metric: Metric, value: float) -> str:
    """A value as it stands in a sentence: `89.0 %`, `0.1234`."""
    return f"{shown(metric, value)}{unit_sign(metric)}"


def unit_sign(metric: Metric) -> str:
    """What follows a value of the metric in a sentence."""
    return " %" if metric.unit == "share" else ""


def in_per_cent(metric: Metric) -> str:
    """What follows the title where a table's values are without their unit."""
    return " in per cent" if metric.unit == "share" else ""


def capital(text: str) -> str:
    """A sentence's beginning: the first letter as a capital."""
    return text[:1].upper() + text[1:]


def _digits(value: float, sign: str = "") -> str:
    """A number with four significant digits, and all of those before the point; tiny and huge ones by a power of 10."""
    size = abs(value)
    if size and not 1e-4 <= size < 1e9:
        return f"{value:{sign}.{DIGITS - 1}e}"
    before = math.floor(math.log10(size)) + 1 if size else 1
    return f"{value:{sign},.{max(0, DIGITS - before)}f}"
