"""Interleaved repeats and medians: what a noisy machine allows."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate; every repeat runs all of them in turn, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, seconds: Mapping[str, float], unit: str) -> str:
    """A table of seconds and of ratios to the candidate `unit`."""
    width = max(map(len, seconds))
    lines = [f"{name:<{width}}  {value:8.3f} s  {value / seconds[unit]:6.2f} ×" for name, value in seconds.items()]
    return "\n".join([f"{title} (ratios to {unit!r})", *lines])
