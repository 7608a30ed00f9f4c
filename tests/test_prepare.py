"""The stage that prepares tasks: what it says, beside what it writes."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.prepare import prepare
from stages.storage.cards import read_json
from tests.tiny import sentiment_table


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory: a project with a fetched table, and three tasks of it."""
    monkeypatch.chdir(tmp_path)
    Path("data/sources/tables").mkdir(parents=True)
    sentiment_table(60, 0).to_csv("data/sources/tables/t.csv", index=False)
    tasks: dict[str, dict[str, Any]] = {
        "two": {"labels": ["bad", "good"]},
        "three": {"labels": ["bad", "neutral", "good"]},
        "prose": {"kind": "masked-lm"},
    }
    content = {
        "sources": {"tables": {"path": "x", "sha256": 64 * "a"}},
        "tasks": {name: {"source": "tables", "file": "t.csv", **task} for name, task in tasks.items()},
        "models": {},
    }
    YAML().dump(content, Path("params.yaml"))


@pytest.mark.usefixtures("project")
def test_labels_without_an_example_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("two", "prose"):
        prepare(task)
        assert capsys.readouterr().err == ""
    prepare("three")
    assert capsys.readouterr().err == "warning: data/tasks/three: no example of the label 'neutral' in any split\n"
    assert read_json(Path("data/tasks/three/task.json"))["counts"]["train"]["neutral"] == 0
