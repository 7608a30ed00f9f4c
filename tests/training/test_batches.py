"""Training batches of texts: of like lengths, so that little of them is padding."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
import transformers as t
from torch import Tensor

from stages.params import FinetuneSettings
from stages.tasks.data import TaskData
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.tasks.kinds.masked_lm.settings import MaskedLM
from stages.tasks.kinds.multiple_choice.settings import MultipleChoice
from stages.tasks.kinds.seq2seq_lm.kind import KIND as SEQ2SEQ
from stages.tasks.kinds.seq2seq_lm.settings import Seq2SeqLM
from stages.tasks.kinds.text_regression.settings import TextRegression
from stages.tasks.task import Task
from stages.training.finetuning import train
from tests.language import made_task, save, tiny_llama, tiny_t5
from tests.test_finetune import outputs
from tests.tiny import WORDS, tiny_config, tiny_tokenizer

ROWS, BATCH = 248, 4  # of which eight rows are held out
TABLE: dict[str, str] = {"source": "s", "file": "f.csv"}
COUNTS = [1 + row * 7 % 20 for row in range(ROWS)]
SENTENCES = [" ".join(WORDS[(row + place) % 15] for place in range(count)) for row, count in enumerate(COUNTS)]
LETTERED = ["abcdefgh"[row % 8] * count for row, count in enumerate(COUNTS)]
SHORT = ["a"] * ROWS


def of_words(model: Callable[[t.BertConfig], Any], labels: Sequence[str] = ()) -> Callable[[Path], Path]:
    """What saves a base by this class that reads words."""
    return lambda place: save(model(tiny_config(labels)), place, tiny_tokenizer())


CASES: dict[str, tuple[Task, dict[str, Sequence[Any]], Callable[[Path], Path]]] = {
    "text-regression": (
        TextRegression(**TABLE, targets=["y"], max_length=24),  # type: ignore[arg-type]
        {"text": SENTENCES, "label": [np.array([0.5])] * ROWS},
        of_words(t.BertForSequenceClassification, ["y"]),
    ),
    "masked-lm": (
        MaskedLM(**TABLE, max_length=24),  # type: ignore[arg-type]
        {"text": SENTENCES},
        of_words(t.BertForMaskedLM),
    ),
    "multiple-choice": (
        MultipleChoice(**TABLE, max_length=24),  # type: ignore[arg-type]
        {"question": SENTENCES, "choice_0": ["fine"] * ROWS, "choice_1": ["bad"] * ROWS, "label": [0, 1] * (ROWS // 2)},
        of_words(t.BertForMultipleChoice),
    ),
    "causal-lm": (
        CausalLM(**TABLE, text="text", max_length=24),  # type: ignore[arg-type]
        {"text": LETTERED},
        lambda place: save(tiny_llama(), place),
    ),
    "seq2seq-lm": (
        Seq2SeqLM(**TABLE, max_length=24, max_target_length=4),  # type: ignore[arg-type]
        {"input": LETTERED, "target": SHORT},
        lambda place: save(tiny_t5(), place),
    ),
}


class EpochOverError(Exception):
    """The batches are there; nothing needs to be trained."""


def epoch(base: Path, task: TaskData, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The training batches of an epoch, as fine-tuning has its Trainer make them."""
    found: list[dict[str, Tensor]] = []

    def instead(trainer: t.Trainer, _: Any) -> SimpleNamespace:
        def take() -> NoReturn:
            found.extend(trainer.get_train_dataloader())
            raise EpochOverError

        return SimpleNamespace(train=take)

    monkeypatch.setattr("stages.training.finetuning.TrainingProgress", instead)
    with pytest.raises(EpochOverError):
        train(base, task, FinetuneSettings(epochs=1, batch_size=BATCH), *outputs(root))
    return found


def padding(batches: Sequence[np.ndarray]) -> float:
    """The share of padding in batches of examples with texts of these lengths, [examples, texts] each."""
    return 1 - sum(float(own.sum()) for own in batches) / sum(own.size * float(own.max()) for own in batches)


@pytest.mark.parametrize("kind", list(CASES))
def test_texts_of_like_lengths_are_in_a_batch(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of a batch in random order is padding, and next to nothing of these; each example is there once."""
    settings, columns, base = CASES[kind]
    task = made_task(tmp_path / "task", settings, columns)
    batches = [batch["attention_mask"] for batch in epoch(base(tmp_path / "base"), task, tmp_path, monkeypatch)]
    assert [len(batch) for batch in batches] == [BATCH] * ((ROWS - 8) // BATCH)
    lengths = [batch.sum(-1).reshape(BATCH, -1).numpy() for batch in batches]
    examples = np.concatenate(lengths)
    assert sorted((examples[:, 0] - examples[:, 0].min()).tolist()) == sorted(count - 1 for count in COUNTS[: ROWS - 8])
    order = np.random.default_rng(0).permutation(len(examples))
    by_chance = padding(np.split(examples[order], len(batches)))
    assert by_chance > 0.25
    real, places = sum(int(batch.sum()) for batch in batches), sum(batch.numel() for batch in batches)
    assert 1 - real / places < 0.3 * by_chance


def test_inputs_and_targets_together_are_an_examples_size(tmp_path: Path) -> None:
    """Of a sequence-to-sequence task: neither orders the examples by itself."""
    pairs = {"input": ["a", "bcdef", "gh", "a"], "target": ["abcdefgh", "a", "abcd", "a"]}
    held = {key: [*values, "a", "b"] for key, values in pairs.items()}
    task = made_task(tmp_path / "task", Seq2SeqLM(**TABLE, max_length=12, max_target_length=12), held, 1)  # type: ignore[arg-type]
    tokenizer = SEQ2SEQ.load_processor(save(tiny_t5(), tmp_path / "base"))
    encoded = SEQ2SEQ.encode(tokenizer, pd.DataFrame(pairs), task, tiny_t5(), seed=0)
    assert SEQ2SEQ.sizes(encoded).tolist() == [1 + 9, 5 + 2, 2 + 5, 1 + 2]  # a target ends
    assert SEQ2SEQ.largest_first(encoded).tolist() == [0, 1, 2, 3]
