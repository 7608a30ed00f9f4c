"""The layout of `stages/`: every import goes down, and what lies at the top is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.pipeline.code import PACKAGE

# Each imports only what stands before it; the stages and commands at the top import them all.
LAYERS = (
    "running",
    "storage",
    "curvature",
    "merging",
    "params",
    "tasks",
    "pipeline",
    "training",
    "estimation",
    "searching",
    "results",
    "reporting",
)
ABOVE = {"params": {"tasks"}}  # of which it imports `metrics` alone, which imports the words of errors alone
LINES = 60  # of a function at most


def imported(file: Path) -> Iterator[str]:
    """The packages of `stages` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "stages" and len(parts) > 1:
                yield parts[1]


def test_every_package_has_its_place() -> None:
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} == set(LAYERS)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_down(package: str) -> None:
    below = {*LAYERS[: LAYERS.index(package) + 1]} | ABOVE.get(package, set())
    for file in (PACKAGE / package).rglob("*.py"):
        assert set(imported(file)) <= below, file


def test_params_import_of_tasks_the_metrics_alone_and_these_no_params() -> None:
    lines = [line for file in (PACKAGE / "params").rglob("*.py") for line in file.read_text().splitlines()]
    assert {line.split(" import ")[0] for line in lines if "stages.tasks" in line} == {"from stages.tasks.metrics"}
    assert set(imported(PACKAGE / "tasks/metrics.py")) == {"running"}


def test_curvature_imports_nothing_else_and_merging_no_statistics_of_its_making() -> None:
    assert {name for file in (PACKAGE / "curvature").rglob("*.py") for name in imported(file)} == {"curvature"}
    assert "curvature" not in {name for file in (PACKAGE / "merging").rglob("*.py") for name in imported(file)}


def test_what_lies_at_the_top_is_a_stage_or_a_command() -> None:
    files = [file for file in PACKAGE.glob("*.py") if file.name != "__init__.py"]
    assert len(files) > 15
    for file in files:
        assert 'if __name__ == "__main__":' in file.read_text(), f"{file}: is never run"
        assert not file.with_suffix("").is_dir(), f"{file}: a package has that name"


def test_no_function_is_long() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < LINES, f"{file}: {node.name}"
