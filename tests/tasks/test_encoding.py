"""Encoding a split: some examples at a time, in one process or several, is encoding them at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

import stages.tasks.encoding as encoding
from stages.running.errors import InputError
from stages.running.placement import without_weights
from stages.tasks.data import TaskData, encoding_fingerprint
from stages.tasks.encoding import EncodedExamples, encode, number_of
from stages.tasks.kind import Kind
from stages.tasks.kinds.masked_lm.kind import KIND as MASKED
from stages.tasks.kinds.text_classification.kind import KIND as CLASSIFIER
from tests.tiny import sentiment_table, tiny_bert, tiny_masked_lm, tiny_tokenizer

MODELS: dict[str, tuple[Kind[Any], Callable[[], Any], tuple[str, ...]]] = {
    "text-classification": (CLASSIFIER, lambda: tiny_bert(["bad", "good"]), ("bad", "good")),
    "masked-lm": (MASKED, tiny_masked_lm, ()),
}


@pytest.mark.parametrize("processes", ["one", "several"])
@pytest.mark.parametrize("kind", MODELS)
def test_encoding_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, processes: str) -> None:
    monkeypatch.setattr(encoding, "ROWS_AT_ONCE", 7)
    if processes == "several":
        monkeypatch.setattr(encoding, "MANY", 10)
    it, make, labels = MODELS[kind]
    table = sentiment_table(50, 0)
    frame = table[["text"]].assign(label=table["label"].eq("good").astype(int))
    task = TaskData(tmp_path / "task", kind, labels, 16, {})
    found = encode(it, tiny_tokenizer(), Dataset.from_pandas(frame), task, make(), seed=3)
    wanted = it.encode(tiny_tokenizer(), frame, task, make(), seed=3)
    assert {name: list(values) for name, values in found.items()} == dict(wanted)
    assert encoding_fingerprint(found) == encoding_fingerprint(wanted)
    assert number_of(found) == len(EncodedExamples(found)) == 50
    assert EncodedExamples(found)[49] == {name: values[49] for name, values in wanted.items()}
    assert it.largest_first(found).tolist() == it.largest_first(wanted).tolist()


def test_an_error_of_one_process_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(encoding, "MANY", 10)
    frame = pd.DataFrame({"text": [*["good film"] * 30, ""], "label": 0})
    task = TaskData(tmp_path / "task", "text-classification", ("bad", "good"), 16, {})
    tokenizer = tiny_tokenizer()
    model = tiny_bert(["bad", "good"], max_position_embeddings=9)
    with pytest.raises(InputError, match=r"tasks\.task\.max_length = 16: the model reads at most 9 tokens"):
        encode(CLASSIFIER, tokenizer, Dataset.from_pandas(frame), task, model, seed=0)


def test_examples_that_are_left_out_do_not_change_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is hidden of a text depends on its number in the split, not on what else is encoded with it."""
    monkeypatch.setattr(encoding, "ROWS_AT_ONCE", 2)
    frame = pd.DataFrame({"text": ["good film", "\u2003", "\u2003", "\u2003", "bad book of a day"]})
    task = TaskData(tmp_path / "task", "masked-lm", (), 16, {})
    found = encode(MASKED, tiny_tokenizer(), Dataset.from_pandas(frame), task, tiny_masked_lm(), seed=1)
    last = MASKED.encode(tiny_tokenizer(), frame[4:], task, tiny_masked_lm(), seed=1)
    assert number_of(found) == 2
    assert {name: values[1] for name, values in found.items()} == {name: values[0] for name, values in last.items()}


def test_a_model_without_weights_is_a_copy() -> None:
    model = tiny_bert(["bad", "good"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied = without_weights(model)
    assert {tensor.device.type for tensor in copied.state_dict().values()} == {"meta"}
    assert {name: tensor.shape for name, tensor in copied.named_parameters()} == {
        name: tensor.shape for name, tensor in model.named_parameters()
    }
    assert copied.config.to_dict() == model.config.to_dict()
    assert all(np.array_equal(tensor, before[name]) for name, tensor in model.state_dict().items())
