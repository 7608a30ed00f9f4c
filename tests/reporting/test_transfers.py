"""Which results are transfers, and what they gain."""

from typing import Any

import pytest

from stages.reporting.transfers import find_transfers, transfer_figures
from stages.results.scores import Contributions, Result


def result(name: str, role: str, accuracies: dict[str, float], **origin: Any) -> Result:
    per_example: dict[str, Contributions] = {
        task: {"examples": task, "metric": "accuracy", "values": []} for task in accuracies
    }
    metrics = {task: {"accuracy": value} for task, value in accuracies.items()}
    return Result(name, role, metrics, origin, per_example=per_example)


MODELS = {"few": {"task": "plays"}, "news": {"task": "topics"}, "long": {"task": "books"}}
RESULTS = [
    result("few", "model", {"plays": 0.7, "books": 0.5}, method="finetuned", base="mini", task="plays"),
    result("news", "model", {"topics": 0.9}, method="finetuned", base="mini", task="topics"),
    result("long", "model", {"books": 0.9, "plays": 0.72}, method="finetuned", base="mini", task="books"),
    *(
        result(
            f"few-{donor}-{method}",
            "merge",
            {"plays": accuracy},
            method=method,
            target="few",
            heads="target",
            models={"few": MODELS["few"], donor: MODELS[donor]},
        )
        for donor, method, accuracy in (("news", "fisher", 0.71), ("long", "fisher", 0.78), ("long", "isotropic", 0.65))
    ),
    result("few-after-long", "model", {"plays": 0.8, "films": 0.6}, method="finetuned", base="long", task="plays"),
    # Another target, whose labels are the same, so that each is measured on the other's task too.
    result("other", "model", {"plays": 0.6, "films": 0.75}, method="finetuned", base="mini", task="films"),
    result(
        "other-long-fisher",
        "merge",
        {"plays": 0.6, "films": 0.76},
        method="fisher",
        target="other",
        heads="target",
        models={"other": {"task": "films"}, "long": MODELS["long"]},
    ),
    result("all", "merge", {"plays": 0.5}, method="fisher", target="few", heads="merge", models=MODELS),
]


def test_gains_are_over_the_target_alone() -> None:
    transfers = find_transfers(RESULTS)
    found = {(t.method, t.target, t.donor): t.difference for t in transfers}
    assert len(found) == len(transfers)
    assert found == pytest.approx(
        {
            ("fisher", "few", "news"): 0.01,
            ("fisher", "few", "long"): 0.08,
            ("isotropic", "few", "long"): -0.05,
            ("fisher", "other", "long"): 0.01,
            ("fine-tuned after the donor", "few", "long"): 0.1,
        }
    )


def test_a_picture_a_method_with_the_numbers_in_it() -> None:
    (figure,) = transfer_figures(RESULTS)
    assert len(figure.pictures) == 3
    pictures = "".join(picture.svg for picture in figure.pictures)
    for shown in ("71.0 (+1.0)", "78.0 (+8.0)", "65.0 (\u22125.0)", "80.0 (+10.0)"):
        assert shown in pictures


def test_one_pair_is_no_grid() -> None:
    assert transfer_figures(RESULTS[:4]) == []
    assert transfer_figures([]) == []
