"""Which results are transfers, and what they gain."""

from typing import Any

import pytest

from stages.reporting.transfers import find_transfers, transfer_figures
from stages.scores import Result


def result(name: str, role: str, accuracies: dict[str, float], **origin: Any) -> Result:
    return Result(name, role, {task: {"accuracy": value} for task, value in accuracies.items()}, origin)


MODELS = {"few": {"task": "plays"}, "news": {"task": "topics"}, "long": {"task": "books"}}
RESULTS = [
    result("few", "model", {"plays": 0.7}, method="finetuned", base="mini"),
    result("news", "model", {"topics": 0.9}, method="finetuned", base="mini"),
    result("long", "model", {"books": 0.9, "plays": 0.72}, method="finetuned", base="mini"),
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
    result("few-after-long", "model", {"plays": 0.8}, method="finetuned", base="long"),
    result("all", "merge", {"plays": 0.5}, method="fisher", target="few", heads="merge", models=MODELS),
]


def test_gains_are_over_the_target_alone() -> None:
    found = {(t.method, t.target, t.donor): t.gain for t in find_transfers(RESULTS)}
    assert found == pytest.approx(
        {
            ("fisher", "few", "news"): 0.01,
            ("fisher", "few", "long"): 0.08,
            ("isotropic", "few", "long"): -0.05,
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
