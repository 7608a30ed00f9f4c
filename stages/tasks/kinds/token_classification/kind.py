"""Token classification: a tag for each word, predicted at its first token."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from transformers import AutoModelForTokenClassification

from stages.running.errors import InputError, TooLongError
from stages.tasks.classifier import Classifier
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.token_classification.settings import TokenClassification
from stages.tasks.loading import Model
from stages.tasks.metrics import NO_OUTPUT
from stages.tasks.text_kind import TextKind
from stages.tasks.texts import Tokenizer, inputs_of, refuse_longer, takes_mask

if TYPE_CHECKING:
    from datasets import Dataset

SEPARATORS = ("", " ")  # before every word but the first, where a tokenizer is given words and not a text


class TokenClassificationKind(TextKind, Classifier[Tokenizer]):
    """Models with an output for each label at each token. Those at a word's first token count."""

    settings = TokenClassification
    architecture = AutoModelForTokenClassification

    def load_processor(self, checkpoint: Path) -> Tokenizer:
        """The tokenizer in a checkpoint directory.

        Raises:
            InputError: it cannot be loaded, does not say of what word a token is, or reads no list of words as a text.
        """
        tokenizer = super().load_processor(checkpoint)
        if not tokenizer.is_fast:
            raise InputError(
                f"{checkpoint}: its tokenizer, {type(tokenizer).__name__}, does not say of what word a token is; take "
                "a base with a fast tokenizer (tokenizer.json)"
            )
        if _separator(tokenizer) is None:
            raise InputError(
                f"{checkpoint}: its tokenizer reads words that are given one by one otherwise than in a text, with a "
                "space before them too; take another base"
            )
        return tokenizer

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """Token ids and masks of every sentence, and `labels`: of each word at its first token, elsewhere −100.

        Words beyond `max_length` have none.

        Raises:
            InputError: the model cannot read the sentences (see `stages.tasks.texts`), the tokenizer makes no token of
                a word, or none of a sentence's words is before `max_length`.
        """
        refuse_longer(task, model)
        sentences = [json.loads(words) for words in frame["words"]]
        separator = _separator(processor) or ""
        found = processor(
            [[words[0], *(separator + word for word in words[1:])] for words in sentences],
            is_split_into_words=True,
            truncation=True,
            max_length=task.max_length,
            return_attention_mask=takes_mask(model),
        )
        labels = []
        for words, own, encoding in zip(sentences, map(json.loads, frame["label"]), found.encodings, strict=True):
            first = _first_tokens(encoding, cut_before=processor.truncation_side == "left")
            made = first.keys() | {word for rest in encoding.overflowing for word in rest.word_ids}
            if (missing := next((number for number in range(len(words)) if number not in made), None)) is not None:
                raise InputError(
                    f"{processor.name_or_path}: its tokenizer makes no token of the word {words[missing]!r} of "
                    f"{task.name} (word {missing + 1} of {' '.join(words)[:40]!r}); remove it from the table, or take "
                    "another base"
                )
            if not first:
                raise TooLongError(
                    f"tasks.{task.name}.max_length = {task.max_length}: no word of {' '.join(words)[:40]!r} is before "
                    "that; raise it"
                )
            labels.append([NO_OUTPUT] * len(encoding.ids))
            for word, token in first.items():
                labels[-1][token] = own[word]
        return inputs_of(processor, found, model) | {"labels": labels}

    def remarks(self, rows: "Dataset", encoded: Mapping[str, Sequence[Any]], task: TaskData) -> Iterator[str]:
        """How many words are beyond `max_length`, if any."""
        if left := self.not_predicted(rows, encoded):
            yield f"{left} of {_words(rows)} words are beyond max_length = {task.max_length}; not predicted"

    def targets(self, encoded: Mapping[str, Sequence[Any]]) -> list[Any]:
        """The labels' positions of each example's words, an array."""
        return [own[own != NO_OUTPUT] for own in map(np.asarray, encoded["labels"])]

    def not_predicted(self, rows: "Dataset", encoded: Mapping[str, Sequence[Any]]) -> int:
        """How many words are beyond `max_length`."""
        return _words(rows) - sum(map(len, self.targets(encoded)))


def _words(rows: "Dataset") -> int:
    """How many words the sentences have."""
    return sum(len(json.loads(words)) for words in rows["words"])


def _first_tokens(encoding: Any, *, cut_before: bool) -> dict[int, int]:
    """Word → the place of its first token, of the words whose first token is there.

    Args:
        encoding: a sentence's, as the library `tokenizers` has it.
        cut_before: whether what is cut off a longer sentence is its beginning.
    """
    gone = {word for rest in encoding.overflowing for word in rest.word_ids} if cut_before else set()
    first: dict[int, int] = {}
    for place, word in enumerate(encoding.word_ids):
        if word is not None and word not in gone:
            first.setdefault(word, place)
    return first


def _separator(tokenizer: Tokenizer) -> str | None:
    """What has to be before words, but for the first, for them to become the tokens that they are in a text."""
    wanted = tokenizer("the the")["input_ids"]
    for separator in SEPARATORS:
        if tokenizer(["the", f"{separator}the"], is_split_into_words=True)["input_ids"] == wanted:
            return separator
    return None


KIND = TokenClassificationKind()
