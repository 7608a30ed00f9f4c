"""Scores as data: what tasks of one metric and of another have to do with each other, and the file of them."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from stages.results.evaluation import contributions, metrics
from stages.results.predictions import Predictions
from stages.results.scores import (
    FILE,
    SCORES_VERSION,
    Result,
    Scores,
    read_result,
    read_scores,
    searched_metric,
    tasks_by_metric,
)
from stages.running.errors import InputError
from stages.storage.cards import METRICS, ORIGIN, PER_EXAMPLE, write_json
from stages.storage.digests import write_contents
from stages.tasks.kinds import KINDS
from stages.tasks.metrics import Accuracy, MacroF1, Metric
from tests.metrics import TOY_KIND, MeanAbsoluteError, RootMeanSquaredError, kind_with

RMSE, MAE = RootMeanSquaredError(), MeanAbsoluteError()
PRIMARY: dict[str, Metric] = {"books": Accuracy(), "prices": RMSE, "rents": RMSE}
MEASURED_BY = {"books": (Accuracy(), MacroF1()), "prices": (RMSE, MAE), "rents": (RMSE, MAE)}


@pytest.fixture(autouse=True)
def _toy_kind() -> Iterator[None]:
    with kind_with(TOY_KIND, RMSE, MAE):
        yield


def predictions() -> dict[str, Predictions]:
    """Logits of a classifier, and numbers with their targets."""
    random = np.random.default_rng(0)
    found = {"books": Predictions(random.normal(size=(20, 2)), np.array([0, 1] * 10))}
    for task in ("prices", "rents"):
        targets = random.normal(size=30)
        near = targets + 0.3 * random.normal(size=30)
        found[task] = Predictions(near[:, None], targets)
    return found


def evaluated(directory: Path) -> Result:
    """The result of an evaluation, read from the files of the stage."""
    found = predictions()
    directory.mkdir(parents=True)
    write_json(directory / METRICS, {"tasks": metrics(found, MEASURED_BY)})
    write_json(
        directory / PER_EXAMPLE, {"tasks": contributions(found, PRIMARY, {task: f"of {task}" for task in PRIMARY})}
    )
    write_json(directory / ORIGIN, {"method": "fisher"})
    write_contents(directory)
    return read_result(directory.name, "merge", searched=True)


def test_an_evaluation_says_what_each_tasks_own_metrics_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = evaluated(Path("results/eval/it"))
    rows = predictions()
    for task in ("prices", "rents"):
        errors = rows[task].outputs[:, 0] - rows[task].targets
        entry = result.metrics[task]
        assert list(entry) == ["rmse", "rmse_low", "rmse_high", "mean_absolute_error", "examples"]
        assert entry["rmse"] == pytest.approx(np.sqrt((errors**2).mean())) == result.score(task)
        assert entry["mean_absolute_error"] == pytest.approx(np.abs(errors).mean())
        assert entry["rmse_low"] < entry["rmse"] < entry["rmse_high"]
        assert result.per_example[task] == {
            "examples": f"of {task}",
            "metric": "rmse",
            "values": pytest.approx((errors**2).tolist()),
        }
        assert (result.metric(task), result.secondary(task)) == (RMSE, [MAE])
    assert result.per_example["books"]["metric"] == "accuracy"
    assert [metric.name for metric in result.secondary("books")] == ["macro_f1"]


def test_a_mean_is_over_tasks_of_one_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = evaluated(Path("results/eval/it"))
    found = result.metrics
    assert result.means == {
        "accuracy": found["books"]["accuracy"],
        "rmse": (found["prices"]["rmse"] + found["rents"]["rmse"]) / 2,
    }
    accuracy: Metric = KINDS["text-classification"].metrics[0]
    assert isinstance(accuracy, Accuracy)
    assert tasks_by_metric([result, result]) == {accuracy: ["books"], RMSE: ["prices", "rents"]}
    assert (result.tasks_of(RMSE), result.tasks_of(MAE)) == (["prices", "rents"], [])


def test_the_file_has_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    points = [{"point": 0.0, "λ a": 0.5, "λ b": 0.5, "prices rmse": 0.4, "rents rmse": 0.2, "score": 0.3}]
    scores = Scores([evaluated(Path("results/eval/it"))], {"it": points})
    (tmp_path / "scores").mkdir()
    write_json(tmp_path / "scores" / FILE, {"format_version": SCORES_VERSION, **asdict(scores)})
    write_contents(tmp_path / "scores")
    assert read_scores(tmp_path / "scores") == scores
    assert searched_metric(points) is RMSE


def test_a_metric_that_is_gone_is_said_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = evaluated(Path("results/eval/it"))
    with (
        kind_with(TOY_KIND),
        pytest.raises(InputError, match=r"there is no metric 'rmse'; known: .*accuracy, macro_f1"),
    ):
        tasks_by_metric([result])
