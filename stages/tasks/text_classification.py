"""Text classification: one label per text (or pair of texts)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.errors import InputError
from stages.tasks import checkpoints
from stages.tasks.checkpoints import Model
from stages.tasks.data import TaskData
from stages.tasks.prediction import Collator, training_set

__all__ = ["training_set"]  # nothing is drawn anew in an epoch

LIKELIHOOD = "categorical"
TRAIN_SAMPLING = "group_by_length"  # little padding

Tokenizer = Any  # transformers has no common base of fast and slow tokenizers that type checkers understand


def load_model(
    checkpoint: Path, labels: Sequence[str], *, new_head: bool = False, head: Mapping[str, torch.Tensor] | None = None
) -> Model:
    """The classifier of texts in a checkpoint directory; see `stages.tasks.checkpoints.load_classifier`.

    With a new head, the pooler before it may be missing too (a masked-LM model has none).
    """
    return checkpoints.load_classifier(
        AutoModelForSequenceClassification, checkpoint, labels, new_head=new_head, head=head
    )


def new_model(checkpoint: Path, labels: Sequence[str]) -> Model:
    """A classifier of texts, initialised at random; see `stages.tasks.checkpoints.new_classifier`."""
    return checkpoints.new_classifier(AutoModelForSequenceClassification, checkpoint, labels)


def load_processor(checkpoint: Path) -> Tokenizer:
    """The tokenizer in a checkpoint directory."""
    try:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers makes of broken files
        raise InputError(
            f"{checkpoint}: its tokenizer cannot be loaded: {' '.join(str(error).split())[:400]}"
        ) from None


def encode(
    tokenizer: Tokenizer, frame: pd.DataFrame, task: TaskData, positions: int | None, seed: int
) -> dict[str, list[Any]]:
    """Token ids and masks of every example, without padding, and `labels`.

    Args:
        tokenizer: the model's.
        frame: the examples.
        task: theirs.
        positions: how many the model has, if it has a limit.
        seed: of what is drawn at random in the examples; here that is nothing.

    Raises:
        InputError: the task's texts may be longer than the model's `positions`.
    """
    return tokens(tokenizer, frame, task, positions) | {"labels": frame["label"].tolist()}


def tokens(tokenizer: Tokenizer, frame: pd.DataFrame, task: TaskData, positions: int | None) -> dict[str, list[Any]]:
    """Token ids and masks of every text, or pair of texts, without padding. Raises `InputError` as `encode` does."""
    if positions is not None and task.max_length > positions:
        raise InputError(
            f"tasks.{task.name}.max_length = {task.max_length}: the model reads at most {positions} tokens; lower it"
        )
    pair = frame["text_pair"].tolist() if "text_pair" in frame else None
    return dict(tokenizer(frame["text"].tolist(), pair, truncation=True, max_length=task.max_length))


def collator(tokenizer: Tokenizer) -> Collator:
    """Pads a list of examples to the longest of them."""
    return transformers.DataCollatorWithPadding(tokenizer)


def largest_first(encoded: Mapping[str, list[Any]]) -> list[int]:
    """The examples' positions, longest first: little padding, and memory runs out at once or not at all."""
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


def position_limit(model: Model) -> int | None:
    """How many positions the model has, if it has a limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
