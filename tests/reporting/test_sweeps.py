"""Which merges are a line along λ."""

from dataclasses import replace

from stages.reporting.sweeps import find_sweeps, own_task, without_sweeps
from stages.results.scores import Result
from tests.reporting.made_up import made_up_scores, merged


def along(method: str, *steps: float, models: tuple[str, str] = ("books", "films")) -> list[Result]:
    return [
        Result(f"{method}-{step}", "merge", {}, merged(method, {models[0]: step, models[1]: 1 - step}))
        for step in steps
    ]


def test_three_merges_that_differ_in_λ_only_are_a_line() -> None:
    results = [
        *along("fisher", 0.75, 0.25, 0.5),
        *along("isotropic", 0.0, 0.4, 1.0),
        *along("ties", 0.3, 0.6),  # two are none
        *along("slerp", 0.1, 0.2, 0.3, models=("books", "news")),
    ]
    first, second = find_sweeps(results)
    assert (first.target, first.other) == ("books", "films")
    assert [line.label for line in first.lines] == ["fisher", "isotropic"]
    assert [λ for λ, _ in first.lines[0].merges] == [0.25, 0.5, 0.75]
    assert [merge.name for _, merge in first.lines[0].merges] == ["fisher-0.25", "fisher-0.5", "fisher-0.75"]
    assert (second.target, second.other) == ("books", "news")
    left = [result.name for result in without_sweeps(results, [first, second])]
    assert left == ["fisher-0.5", "isotropic-0.4", "ties-0.3", "ties-0.6", "slerp-0.3"]


def test_other_options_are_another_line() -> None:
    plain = along("fisher", 0.2, 0.5, 0.8)
    raised = [
        replace(merge, name=f"raised-{merge.name}", origin={**merge.origin, "options": {"floor": 0.1}})
        for merge in plain
    ]
    (sweep,) = find_sweeps([*plain, *raised])
    assert [line.label.split(", ")[0:2] for line in sweep.lines] == [
        ["fisher", "floor = 1e-06"],
        ["fisher", "floor = 0.1"],
    ]


def test_searched_merges_are_on_no_line() -> None:
    searched = [replace(merge, searched=True) for merge in along("fisher", 0.2, 0.5, 0.8)]
    assert find_sweeps(searched) == []


def test_own_task() -> None:
    results = made_up_scores().results
    assert own_task("news", results) == "news"
    assert own_task("nobody", results) is None
