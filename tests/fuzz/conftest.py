"""What came out of all cases, at the end of the run."""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.fuzz.cases import Random, run_cases

Runner = Callable[[str, int, Callable[[Random], str]], None]


@pytest.fixture
def run(record_property: Callable[[str, object], None]) -> Runner:
    """`run_cases`, with what came out in the summary."""

    def recorded(name: str, count: int, case: Callable[[Random], str]) -> None:
        for outcome, times in run_cases(name, count, case).items():
            record_property(outcome, times)

    return recorded


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what the tests of each file have recorded, in whatever process they ran."""
    totals: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for outcome, times in report.user_properties:
            if report.when == "call":
                totals.setdefault(report.location[0], Counter())[outcome] += times
    for file, counts in sorted(totals.items()):
        terminalreporter.write_line(f"{file}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
