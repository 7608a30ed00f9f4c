"""The words that the numbers decide."""

from dataclasses import replace

from stages.reporting.finding import main_finding, what_was_merged
from stages.reporting.significance import comparable_groups
from stages.results.scores import Contributions, Result

EXAMPLES = 400


def result(name: str, role: str, method: str = "finetuned", **rights: int) -> Result:
    """With the first so many predictions of a task right."""
    metrics = {task: {"accuracy": right / EXAMPLES, "examples": EXAMPLES} for task, right in rights.items()}
    per_example: dict[str, Contributions] = {
        task: {"examples": task, "metric": "accuracy", "values": [1] * right + [0] * (EXAMPLES - right)}
        for task, right in rights.items()
    }
    return Result(name, role, metrics, {"method": method, "base": "small", "examples": 1000}, per_example=per_example)


RESULTS = [
    result("books", "model", books=380, films=300),
    result("films", "model", books=300, films=370),
    result("average", "merge", "isotropic", books=340, films=330),
    result("fisher", "merge", "fisher", books=360, films=352),
    result("kfac", "merge", "kfac", books=360, films=351),
    result("ensemble", "baseline", "ensemble", books=366, films=362),
]


def found(*names: str) -> str:
    (group,) = comparable_groups([result for result in RESULTS if result.name in names])
    return main_finding(group)


def test_the_main_finding() -> None:
    text = found(*(result.name for result in RESULTS))
    assert "Of the 3 merges compared, **fisher** is the most accurate on the mean over the 2 tasks: 89.0 %." in text
    assert "- The runner-up, kfac, has 88.9 %: +0.1 points for the merge" in text
    assert "within noise" in next(line for line in text.splitlines() if "runner-up" in line)
    assert "more than noise." in next(line for line in text.splitlines() if "Plain averaging, average" in line)
    assert "more than noise; the merge is worse." in next(line for line in text.splitlines() if "ensemble" in line)
    assert "- The best single model, books, has 85.0 %" in text
    assert "On each task by itself, a single model is still ahead of every merge." in text
    assert "flatters it" in text


def test_merges_that_are_exactly_level_are_said_to_be() -> None:
    others = [each for each in RESULTS if each.name != "kfac"]
    (group,) = comparable_groups([*others, result("ties", "merge", "ties", books=352, films=360)])
    text = main_finding(group)
    assert "is the most accurate on the mean over the 2 tasks: 89.0 %, exactly level with ties." in text
    assert "- Level with it, ties, has 89.0 %: no difference (95 % interval" in text
    assert "runner-up" not in text


def test_a_single_merge_has_not_been_chosen() -> None:
    text = found("films", "fisher")
    assert text.startswith("The merge **fisher** was measured on the mean over the 2 tasks: 89.0 %.")
    assert "runner-up" not in text
    assert "flatters" not in text
    assert "a single model is still ahead of every merge on films." in text
    assert found("books", "films") == ""


def test_what_was_merged() -> None:
    text = what_was_merged(RESULTS, ["books", "films"])
    assert text.startswith("2 models, fine-tuned from small: books and films. Each was trained on 1,000 examples.")
    assert "3 merges were made, by `isotropic`, `fisher` and `kfac`." in text
    assert "for comparison: ensemble, which merges nothing." in text
    assert text.endswith("All is measured on 2 tasks (books and films), 400 test examples each.")
    assert "Merged too" not in text
    adapted = replace(RESULTS[3], origin={"method": "fisher", "coefficients": {"books": 0.5, "masked-words": 0.5}})
    text = what_was_merged([*RESULTS[:2], adapted], ["books", "films"])
    assert "Merged too, but without test results of their own: masked-words." in text
