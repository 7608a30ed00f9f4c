"""The search for λ: real tiny models, merged and scored again by independent means."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from stages.running.errors import InputError
from stages.searching.sampling import Grid, Learning
from stages.tasks.kinds import KINDS
from stages.tasks.metrics import Accuracy
from tests.metrics import CrossEntropy, kind_with
from tests.workshop import (
    OUT,
    TASKS_OF_TWO,
    THREE,
    accuracy_of,
    logits_of,
    merged_with,
    params_of,
    predicted,
    searched,
    λ_of,
)


@pytest.mark.parametrize(
    ("coefficients", "search", "merge"),
    [
        ({"ann": 1, "bob": 1}, {"sampler": "grid", "points": 9}, {}),
        ({"ann": 2, "bob": 1, "cid": 1}, {"sampler": "simplex", "points": 12, "seed": 1}, {"target": "cid"}),
        ({"ann": 1, "bob": 1, "cid": 0}, {"sampler": "tpe", "points": 14}, {"method": "isotropic"}),
        ({"ann": 1, "bob": 2, "cid": 1}, {"sampler": "cma-es", "points": 10}, {"method": "task_arithmetic"}),
    ],
    ids=["grid", "simplex", "tpe", "cma-es"],
)
def test_every_points_scores_are_those_of_the_checkpoint_that_merging_with_its_λ_writes(
    inside: Path, coefficients: dict[str, float], search: dict[str, Any], merge: dict[str, Any]
) -> None:
    params = params_of(coefficients, search, **merge)
    found, sweep = searched(params)
    models = params.merges["it"].models
    columns = ["point", *(f"λ {model}" for model in models), "books accuracy", "films accuracy", "score"]
    assert list(sweep.columns) == columns
    assert sweep["point"].tolist() == list(range(search["points"]))
    np.testing.assert_allclose(sweep[columns[1:-3]].sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(sweep["score"], (sweep["books accuracy"] + sweep["films accuracy"]) / 2, rtol=1e-12)
    assert sweep["score"].nunique() > 2  # λ matters, or this test would say nothing
    winner = sweep[sweep["score"] == sweep["score"].max()]
    assert found["score"] == sweep["score"].max()
    assert found["coefficients"] in [λ_of(row, models) for _, row in winner.iterrows()]
    assert (found["points"], found["sampler"], found["tasks"]) == (search["points"], search["sampler"], TASKS_OF_TWO)
    for _, row in sweep.iloc[[0, 1, -1]].iterrows():
        checkpoint = merged_with(params, λ_of(row, models))
        assert {task: accuracy_of(checkpoint, task) for task in TASKS_OF_TWO} == {
            task: row[f"{task} accuracy"] for task in TASKS_OF_TWO
        }
    checkpoint = merged_with(params, found["coefficients"])
    assert found["score"] == np.mean([accuracy_of(checkpoint, task) for task in TASKS_OF_TWO])
    total = sum(coefficients.values())
    at_start = merged_with(params, {model: λ / total for model, λ in coefficients.items()})
    assert found["start"] == np.mean([accuracy_of(at_start, task) for task in TASKS_OF_TWO])


def test_a_grid_that_misses_the_start_does_not_invent_its_score(inside: Path) -> None:
    found, sweep = searched(params_of({"ann": 1, "bob": 2}, {"sampler": "grid", "points": 3}))
    assert found["start"] is None
    assert sweep["λ ann"].tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("count", [2, 3])
def test_the_picture_is_an_svg_that_names_the_models(inside: Path, count: int) -> None:
    names = ["ann", "bob", "cid"][:count]
    searched(params_of(dict.fromkeys(names, 1.0), {"sampler": "simplex", "points": 4}))
    picture = (OUT / "sweep.svg").read_text()
    assert picture.startswith("<svg")
    assert all(f"λ of {name}" in picture for name in (names if count > 2 else names[:1]))
    assert all(name in picture for name in names)


def test_tasks_of_different_labels_with_heads_of_their_own(inside: Path) -> None:
    params = params_of({"ann": 1, "dan": 1}, {"sampler": "grid", "points": 5}, heads="each", method="isotropic")
    found, sweep = searched(params)
    assert found["tasks"] == ["books", "plays"]
    assert sweep["plays accuracy"].nunique() > 1
    for _, row in sweep.iloc[[0, 2, 4]].iterrows():
        checkpoint = merged_with(params, λ_of(row, ["ann", "dan"]))
        for task, model in (("books", "ann"), ("plays", "dan")):
            head = checkpoint / "heads" / f"{model}.safetensors"
            assert row[f"{task} accuracy"] == accuracy_of(checkpoint, task, head)
    # At its ends a grid has the models themselves, each with its own head for its own task.
    assert sweep["books accuracy"].iloc[0] == accuracy_of(Path("models/finetuned/ann"), "books")
    assert sweep["plays accuracy"].iloc[-1] == accuracy_of(Path("models/finetuned/dan"), "plays")


def test_scores_relative_to_the_experts(inside: Path) -> None:
    search = {"sampler": "simplex", "points": 8}
    _, plain = searched(params_of(THREE, search))
    found, sweep = searched(params_of(THREE, search | {"normalize": True}), Path("results/relative"))
    # The target comes first, and of the two models of films the first is its expert.
    experts = [
        accuracy_of(Path("models/finetuned") / name, task) for name, task in (("ann", "books"), ("bob", "films"))
    ]
    columns = [f"{task} accuracy" for task in TASKS_OF_TWO]
    pd.testing.assert_frame_equal(sweep[columns], plain[columns])
    wanted = (plain["books accuracy"] / experts[0] + plain["films accuracy"] / experts[1]) / 2
    np.testing.assert_allclose(sweep["score"], wanted, rtol=1e-12)
    assert found["score"] == pytest.approx(wanted.max())


def test_macro_f1_is_maximised_where_it_is_asked_for(inside: Path) -> None:
    search = {"sampler": "simplex", "points": 8, "metric": "macro_f1", "tasks": ["films"]}
    params = params_of(THREE, search)
    found, sweep = searched(params)
    assert (found["metric"], found["tasks"]) == ("macro_f1", ["films"])
    assert list(sweep.columns[-2:]) == ["films macro_f1", "score"]
    predictions, labels = predicted(merged_with(params, found["coefficients"]), "films")
    f1 = [
        2 * np.sum((predictions == k) & (labels == k)) / (np.sum(predictions == k) + np.sum(labels == k))
        for k in range(2)
    ]
    assert found["score"] == pytest.approx(np.mean(f1)) == sweep["films macro_f1"].max()


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_metric_that_is_better_when_smaller_is_minimised(
    inside: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default it is the primary one; a sampler that learns is told the negated score."""
    told: list[float] = []
    for kind in (Grid, Learning):
        plain = kind.tell

        def tell(self: Any, score: float, plain: Any = plain) -> None:
            told.append(score)
            plain(self, score)

        monkeypatch.setattr(kind, "tell", tell)
    with kind_with("text-classification", CrossEntropy(), *KINDS["text-classification"].metrics):
        params = params_of({"ann": 1, "bob": 1}, {"sampler": sampler, "points": 9})
        found, sweep = searched(params)
        _, relative = searched(
            params_of({"ann": 1, "bob": 1}, {"sampler": sampler, "points": 9, "normalize": True}), Path("results/other")
        )
        named = params_of({"ann": 1, "bob": 1}, {"sampler": sampler, "points": 9, "metric": "accuracy"})
        most, _ = searched(named, Path("results/third"))
    assert told[:9] == (-sweep["score"]).tolist()
    assert found["metric"] == "cross_entropy"
    assert list(sweep.columns[-3:]) == ["books cross_entropy", "films cross_entropy", "score"]
    assert found["score"] == sweep["score"].min() < sweep["score"].max()
    checkpoint = merged_with(params, found["coefficients"])
    by_hand = []
    for task in TASKS_OF_TWO:
        logits, labels = logits_of(checkpoint, task)
        p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
        by_hand.append(-np.log(p[np.arange(len(labels)), labels]).mean())
    assert found["score"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert told[9:18] == (-relative["score"]).tolist(), "relative to the experts, less is better too"
    assert most["metric"] == "accuracy"
    assert most["score"] == max(told[18:])
    assert "cross-entropy, validation" in (OUT / "sweep.svg").read_text()
    assert "%" not in "".join(ET.fromstring((OUT / "sweep.svg").read_text()).itertext())


@pytest.mark.parametrize("worth", [0.0, -0.25])
def test_an_expert_that_scores_nothing_is_no_measure(
    inside: Path, monkeypatch: pytest.MonkeyPatch, worth: float
) -> None:
    monkeypatch.setattr(Accuracy, "summary", lambda *_: worth)
    params = params_of({"ann": 1, "bob": 1}, {"sampler": "grid", "points": 3, "normalize": True})
    with pytest.raises(InputError, match=rf"ann: has accuracy {worth:.4g} on books; `search\.normalize` cannot"):
        searched(params)


@pytest.mark.parametrize(
    ("tasks", "heads", "message"),
    [
        (
            ["books", "plays"],
            "merge",
            "plays asks for other outputs than the merged model has, which are those of books; list other tasks, or",
        ),
        (["books", "plays"], "each", "the task plays is that of none of the merged models"),
    ],
)
def test_a_task_that_the_merged_model_cannot_do_is_an_error_in_one_line(
    inside: Path, tasks: list[str], heads: str, message: str
) -> None:
    search = {"sampler": "grid", "points": 3, "tasks": tasks}
    with pytest.raises(InputError, match=message) as caught:
        searched(params_of({"ann": 1, "bob": 1}, search, heads=heads))
    assert "\n" not in str(caught.value)
    assert not Path("results").exists()
