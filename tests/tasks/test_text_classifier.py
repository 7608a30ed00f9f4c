"""Models that read texts and have outputs with names: what holds whatever the outputs are."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.tasks.data import TaskData
from stages.tasks.kinds.multi_label_classification.kind import KIND as MULTI_LABEL
from stages.tasks.kinds.text_classification.kind import KIND as SINGLE_LABEL
from stages.tasks.kinds.text_regression.kind import KIND as REGRESSION
from stages.tasks.prediction import examples_for, predict, targets
from stages.tasks.text_classifier import TextClassifier
from tests.tasks.heads import estimated, save_bert, written_task
from tests.tiny import sentiment_table, tiny_bert, tiny_tokenizer

NAMES = ["one", "two", "three"]
COMMON = {"source": "s", "file": "t.csv", "max_length": 16}
KINDS: dict[str, tuple[TextClassifier, dict[str, Any], list[Any]]] = {
    "one label": (SINGLE_LABEL, {"labels": NAMES}, [0, 1, 2]),
    "several labels": (MULTI_LABEL, {"labels": NAMES}, [[0, 2], [1], [0, 1, 2]]),
    "numbers": (REGRESSION, {"targets": NAMES, "variance": 0.3}, [[0.5, 1.0, -2.0], [0.0, 0.1, 3.0], [1.0, 1.0, 1.0]]),
}


@pytest.fixture(params=list(KINDS))
def kind_and_task(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TextClassifier, TaskData]:
    kind, settings, labels = KINDS[request.param]
    frame = sentiment_table(60, 0)[["text"]].assign(
        label=pd.Series([np.array(label) if isinstance(label, list) else label for label in labels * 20])
    )
    return kind, written_task(tmp_path / "task", kind.settings.model_validate(COMMON | settings), frame)


def test_texts_longer_than_the_model(
    tmp_path: Path, kind_and_task: tuple[TextClassifier, TaskData], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another model's task, it reads the beginnings, and says so; a task of its own is refused."""
    kind, task = kind_and_task
    tiny_bert(NAMES, max_position_embeddings=6).save_pretrained(tmp_path / "short")
    tiny_tokenizer().save_pretrained(tmp_path / "short")
    model = kind.load_model(tmp_path / "short", NAMES)
    examples = examples_for(kind, tmp_path / "short", model, task.rows("test"), task, Placement())
    assert "task: the model reads 6 tokens of its texts, which may have 16" in capsys.readouterr().err
    assert predict(model, examples, task.metrics).shape == (10, 3)
    assert len(targets(examples)) == 10
    with pytest.raises(InputError, match=r"tasks\.task\.max_length = 16: the model reads at most 6 tokens; lower it"):
        estimated("diagonal", tmp_path / "short", task, tmp_path / "out")


@pytest.mark.parametrize("statistic", ["kfac", "gram"])
def test_factors_do_not_depend_on_the_batches(
    tmp_path: Path, kind_and_task: tuple[TextClassifier, TaskData], statistic: str
) -> None:
    _, task = kind_and_task
    save_bert(tmp_path / "model", NAMES, None)
    alone, together = (
        estimated(statistic, tmp_path / "model", task, tmp_path / f"{statistic}-{size}", batch_size=size)
        for size in (1, 7)
    )
    assert "input.classifier.weight" in alone
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))
