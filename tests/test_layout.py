"""The layout of `stages/`: every import goes down, and what lies at the top is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.pipeline.code import PACKAGE
from stages.storage import checkpoint_files

# Each imports only what stands before it; the stages and commands at the top import them all.
LAYERS = (
    "running",
    "storage",
    "curvature",
    "merging",
    "tasks",
    "params",
    "pipeline",
    "training",
    "estimation",
    "searching",
    "results",
    "reporting",
)
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
    below = {*LAYERS[: LAYERS.index(package) + 1]}
    for file in (PACKAGE / package).rglob("*.py"):
        assert set(imported(file)) <= below, file


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


def placing(file: Path) -> Iterator[str]:
    """What a file does that moves a model or a batch, or chooses in what type it is computed."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ("autocast", "cuda", "empty_cache"):
            yield f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "to":
            said = ast.unparse(node)
            if "dtype" not in said and "float" not in said:  # a tensor's type for arithmetic or a file
                yield f"line {node.lineno}: {said}"
        if isinstance(node, ast.keyword) and node.arg in ("device", "device_map"):
            own = ast.unparse(node.value).endswith(".device")  # of another tensor, beside which this one belongs
            yield from () if own else [f"line {node.value.lineno}: {ast.unparse(node)}"]


def test_one_module_places_models_and_batches() -> None:
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if file.relative_to(PACKAGE).parts[0] not in ("curvature", "merging") and any(placing(file))
    }
    assert found == {"running/placement.py", "recipe.py"}  # which names the hardware


def named_files(file: Path) -> set[str]:
    """The names of a checkpoint's files that a module spells out, apart from sentences."""
    known = {checkpoint_files.CHECKPOINT_CARD, checkpoint_files.CONFIG, checkpoint_files.ADAPTER_CONFIG}
    known |= {checkpoint_files.WEIGHTS, checkpoint_files.HEADS + "/", f"{checkpoint_files.STEM}.safetensors"}
    nodes = ast.walk(ast.parse(file.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and node.value in known}


def test_one_module_knows_what_a_checkpoints_files_are_called() -> None:
    found = {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py") if named_files(file)}
    assert found == {"storage/checkpoint_files.py"}
