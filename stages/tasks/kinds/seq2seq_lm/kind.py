"""Sequence-to-sequence language modelling: a decoder writes a text, token by token, of what an encoder has read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from stages.running.errors import InputError
from stages.tasks import texts
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.seq2seq_lm.settings import Seq2SeqLM
from stages.tasks.language_model import LanguageModelKind, greedy
from stages.tasks.loading import Model
from stages.tasks.metrics import NO_OUTPUT
from stages.tasks.outputs import Written
from stages.tasks.prediction import Collator, Examples
from stages.tasks.texts import Tokenizer


class Seq2SeqLMKind(LanguageModelKind):
    """Models with an encoder and a decoder, T5 and BART for example."""

    settings = Seq2SeqLM
    architecture = AutoModelForSeq2SeqLM
    what = "a sequence-to-sequence language model"

    def load_processor(self, checkpoint: Path) -> Tokenizer:
        """The tokenizer in a checkpoint directory. Raises `InputError` if it cannot be loaded or ends no text."""
        tokenizer = super().load_processor(checkpoint)
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"{checkpoint}: its tokenizer has no token that ends a text, so that a model never stops; name one of "
                "its tokens as `eos_token` in tokenizer_config.json"
            )
        return tokenizer

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """The inputs' token ids and masks, and as `labels` the targets' token ids; nothing is drawn.

        Raises:
            InputError: the model can read or write no texts as long, or the tokenizer makes no token of one.
        """
        limit, longest = texts.position_limit(model), task.card["max_target_length"]
        if limit is not None and longest >= limit:  # a batch may need a position more; see `collator`
            reason = f"the model writes at most {limit - 1} tokens; lower it"
            raise InputError(f"tasks.{task.name}.max_target_length = {longest}: {reason}")
        for column in ("input", "target"):
            texts.plain_tokens(processor, frame[column].tolist(), task)  # of each there is one
        inputs = texts.tokens(processor, frame.rename(columns={"input": "text"})[["text"]], task, model)
        end = processor.eos_token_id
        whole = processor(text_target=frame["target"].tolist())["input_ids"]
        labels = [(ids if ids[-1] == end else [*ids, end])[:longest] for ids in whole]
        texts.refuse_beyond_embeddings(processor, labels, model)
        return {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs} | {"labels": labels}

    def refuse_unknown(self, processor: Tokenizer, encoded: Mapping[str, Sequence[Any]], task: TaskData) -> None:
        """Raise `InputError` if most tokens of a task's inputs, or of its targets, are the unknown token."""
        texts.refuse_unknown(processor, encoded, task)
        texts.refuse_unknown(processor, {"input_ids": encoded["labels"]}, task)

    def longest(self, task: TaskData) -> int:
        """How long the task's inputs, or its targets with the token that they begin with, may be, in tokens."""
        return max(task.max_length, task.card["max_target_length"] + 1)

    def within(self, task: TaskData, limit: int) -> TaskData:
        """The task with no input, and no target with the token that it begins with, longer than so many tokens."""
        target = min(task.card["max_target_length"], limit - 1)
        return replace(super().within(task, limit), card={**task.card, "max_target_length": target})

    def sizes(self, encoded: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """How many tokens each example has, of input and target together."""
        return texts.lengths(encoded["input_ids"]) + texts.lengths(encoded["labels"])

    def collator(self, processor: Tokenizer, model: Model) -> Collator:
        """Pads a list of examples, and has the decoder's inputs: the model's own, of the labels one position later."""
        pad = super().collator(processor, model)

        def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch = pad(examples)
            if batch["labels"].shape == batch["input_ids"].shape:
                # By the shapes of activations it is told whose padding they have, the encoder's or the decoder's.
                batch["labels"] = torch.nn.functional.pad(batch["labels"], (0, 1), value=NO_OUTPUT)
            return batch | {
                "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=batch["labels"]),
                "decoder_attention_mask": (batch["labels"] != NO_OUTPUT).long(),
            }

        return collate

    def further_outputs(self, model: Model, examples: Examples) -> np.ndarray:
        """[N, 1]: whether the model writes the target, and ends there, within as many tokens as a target may have."""
        limit, tokenizer = examples.task.card["max_target_length"], examples.processor
        found = np.zeros((len(examples.rows), 1))
        targets = examples.rows["target"]
        for row, ids in zip(examples.order, _goes_on(model, examples, examples.order, limit), strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            found[row] = ids[-1:] == [tokenizer.eos_token_id] and text.strip() == targets[row].strip()
        return found

    def written(self, model: Model, examples: Examples, rows: Sequence[int], limit: int) -> list[Written]:
        """What the model writes of the inputs."""
        read = examples.rows.select(rows)
        own = [
            examples.processor.decode(ids, skip_special_tokens=True) for ids in _goes_on(model, examples, rows, limit)
        ]
        return [Written(*each) for each in zip(read["input"], read["target"], own, strict=True)]


def _goes_on(model: Model, examples: Examples, rows: Sequence[int] | np.ndarray, limit: int) -> list[list[int]]:
    """The tokens that the model writes for the examples at these positions."""
    most, end = texts.position_limit(model), examples.processor.eos_token_id
    found: list[list[int]] = []
    for batch in examples.batches(rows):
        inputs = {key: tensor for key, tensor in batch.items() if key in ("input_ids", "attention_mask")}
        begin = int(batch["decoder_input_ids"][0, 0])
        found += greedy(model, inputs, end=end, limit=limit if most is None else min(limit, most), begin=begin)
    return found


KIND = Seq2SeqLMKind()
