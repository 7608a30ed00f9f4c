"""One undisturbed project for all tests, and the table of what survived."""

from collections.abc import Iterator

import pytest
from filelock import FileLock

from tests.faults.process import STARTED
from tests.faults.table import Trials, render
from tests.faults.undisturbed import Undisturbed, run_undisturbed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Undisturbed:
    """The project in one go; the first of several test processes makes it."""
    place = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # of pytest-xdist, whose processes have a folder each in this one
        place = place.parent
    with FileLock(place / "undisturbed.lock"):
        if not (place / "undisturbed/.complete").exists():
            run_undisturbed(place / "undisturbed")
            (place / "undisturbed/.complete").touch()
    return Undisturbed(place / "undisturbed")


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """End what a test has started, also where it fails."""
    yield
    while STARTED:
        STARTED.pop().end()


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Trials:
    """Where a test notes its trials."""
    return Trials(request.node.user_properties)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    properties = [entry for report in reports if report.when == "call" for entry in report.user_properties]
    if table := render(properties):
        terminalreporter.section("faults")
        terminalreporter.write_line(table)
