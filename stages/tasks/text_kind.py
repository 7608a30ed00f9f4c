"""What kinds of task whose examples are texts have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.tasks import texts
from stages.tasks.data import TaskData
from stages.tasks.kind import Kind
from stages.tasks.loading import Model
from stages.tasks.prediction import Collator
from stages.tasks.texts import Tokenizer


class TextKind(Kind[Tokenizer]):
    """A kind whose models read texts."""

    train_sampling = "group_by_length"  # little padding

    def load_processor(self, checkpoint: Path) -> Tokenizer:
        """The tokenizer in a checkpoint directory; see `stages.tasks.texts.load_tokenizer`."""
        return texts.load_tokenizer(checkpoint)

    def collator(self, processor: Tokenizer, model: Model) -> Collator:
        """Pads a list of examples to the longest of them; see `stages.tasks.texts.collator`."""
        return texts.collator(processor, model)

    def sizes(self, encoded: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """How many tokens each example has."""
        return texts.lengths(encoded["input_ids"])

    def position_limit(self, model: Model) -> int | None:
        """How many tokens the model reads, if that is limited."""
        return texts.position_limit(model)

    def refuse_unknown(self, processor: Tokenizer, encoded: Mapping[str, Sequence[Any]], task: TaskData) -> None:
        """Raise `InputError` if most tokens of a task's training texts are the unknown token."""
        texts.refuse_unknown(processor, encoded, task)
