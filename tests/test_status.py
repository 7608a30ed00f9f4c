"""What would run, from what dvc says; tests/sharing/test_elsewhere.py runs the command."""

from typing import Any

from stages.status import NOWHERE, aligned, stages_without, would_run

EDGES = [("fisher-a", "merge-x"), ("merge-x", "evaluate-x"), ("evaluate-x", "scores"), ("merge-y", "evaluate-y")]


def test_what_is_only_not_here_is_no_reason() -> None:
    changes = {
        "fisher-a": [
            {"changed deps": {"models/finetuned/a": "deleted"}},
            {"changed outs": {"models/fishers/a": "not in cache"}},
        ]
    }
    assert would_run(changes, EDGES) == {}


def test_reasons_and_what_comes_after() -> None:
    changes: dict[str, list[Any]] = {
        "merge-x": [{"changed deps": {"stages/merging": "modified", "params.yaml": "modified"}}],
        "merge-y": [  # said of params.yaml, and of the code
            {"changed deps": {"results/settings/merge-y.json": "modified", "results/code/merge-y.json": "modified"}}
        ],
        "evaluate-y": ["changed command"],
    }
    assert would_run(changes, EDGES) == {
        "merge-x": "yes: stages/merging, params.yaml",
        "evaluate-y": "yes: changed command",
        "evaluate-x": "after merge-x",
        "scores": "after evaluate-x",
    }


def test_what_is_nowhere_is_a_reason() -> None:
    changes = {
        "fisher-a": [{"changed outs": {"models/fishers/a": "not in cache"}}],
        "evaluate-y": [{"changed deps": {"data/tasks/y": "modified"}}, {"changed outs": {"results/y": "not in cache"}}],
    }
    assert would_run(changes, EDGES, ["fisher-a", "evaluate-y"]) == {
        "fisher-a": f"yes: {NOWHERE}",
        "merge-x": "after fisher-a",
        "evaluate-x": "after merge-x",
        "scores": "after evaluate-x",
        "evaluate-y": "yes: data/tasks/y",
    }


def test_an_output_is_gone_if_a_part_of_it_is() -> None:
    outputs = {"a": ["models/a"], "b": ["models/ab", "results/b/x.json"], "c": ["results/b/y.json"], "d": ["models/d"]}
    assert stages_without(["models/a/", "results/b/x.json", "models/d/weights"], outputs) == ["a", "b", "d"]
    assert stages_without([], outputs) == []


def test_columns_are_aligned() -> None:
    assert aligned([["", "b"], ["long", "c"]]) == "      b\nlong  c"
