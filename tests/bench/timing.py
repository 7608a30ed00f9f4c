"""Interleaved repeats and medians: what a noisy machine allows."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    slow: float = float("inf"),
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each candidate; every repeat runs all of them in turn, after one that is not counted.

    A candidate that takes more than `slow` seconds in that first turn is not run again: that is its time. `before` is
    called before each run and is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    first: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            if first.get(name, 0.0) > slow:
                continue
            before()
            start = time.perf_counter()
            run()
            duration = time.perf_counter() - start
            if repeat:
                seconds[name].append(duration)
            else:
                first[name] = duration
    return {name: statistics.median(values or [first[name]]) for name, values in seconds.items()}


def table(title: str, seconds: Mapping[str, float], unit: str, remarks: Mapping[str, str] | None = None) -> str:
    """A table of seconds and of ratios to the candidate `unit`, with a remark on some of them."""
    remarks = remarks or {}
    width = max(map(len, [*seconds, *remarks]))
    lines = [
        f"{name:<{width}}  {value:8.3f} s  {value / seconds[unit]:6.2f} ×  {remarks.get(name, '')}".rstrip()
        for name, value in seconds.items()
    ]
    lines += [f"{name:<{width}}  {remark}" for name, remark in remarks.items() if name not in seconds]
    return "\n".join([f"{title} (ratios to {unit!r})", *lines])
