"""Text classification: one label per text (or pair of texts)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification

from stages.running.errors import InputError
from stages.tasks import loading
from stages.tasks.data import TaskData
from stages.tasks.loading import Model
from stages.tasks.prediction import training_set
from stages.tasks.texts import (
    Tokenizer,
    collator,
    largest_first,
    load_tokenizer,
    position_limit,
    refuse_unknown,
    tokens,
)

# Of texts, whatever is done with them; and nothing is drawn anew in an epoch.
__all__ = ["collator", "largest_first", "position_limit", "refuse_unknown", "training_set"]

LIKELIHOOD = "categorical"
TRAIN_SAMPLING = "group_by_length"  # little padding


def load_model(
    checkpoint: Path, labels: Sequence[str], *, new_head: bool = False, head: Mapping[str, torch.Tensor] | None = None
) -> Model:
    """The classifier of texts in a checkpoint directory; see `stages.tasks.loading.load_classifier`.

    With a new head, the pooler before it may be missing too (a masked-LM model has none).
    """
    return loading.load_classifier(AutoModelForSequenceClassification, checkpoint, labels, new_head=new_head, head=head)


def new_model(checkpoint: Path, labels: Sequence[str]) -> Model:
    """A classifier of texts, initialised at random; see `stages.tasks.loading.new_classifier`."""
    return loading.new_classifier(AutoModelForSequenceClassification, checkpoint, labels)


def load_processor(checkpoint: Path) -> Tokenizer:
    """The tokenizer in a checkpoint directory; see `stages.tasks.texts.load_tokenizer`."""
    return load_tokenizer(checkpoint)


def encode(tokenizer: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> dict[str, list[Any]]:
    """Token ids and masks of every example, without padding, and `labels`.

    Args:
        tokenizer: the model's.
        frame: the examples.
        task: theirs.
        model: what they are for.
        seed: of what is drawn at random in the examples; here that is nothing.

    Raises:
        InputError: the model cannot read them (see `stages.tasks.texts.tokens`), or the tokenizer makes nothing of one.
    """
    found = tokens(tokenizer, frame, task, model)
    for text, ids in zip(frame["text"], found["input_ids"], strict=True):
        if not ids:
            raise InputError(
                f"{tokenizer.name_or_path}: its tokenizer makes no token of the text {text[:40]!r} of {task.name}; "
                "remove it from the table, or take another base"
            )
    return found | {"labels": frame["label"].tolist()}
