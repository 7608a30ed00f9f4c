"""Multiple choice: the right one of several choices, by an encoder's choice head or by a causal language model."""

import inspect
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMultipleChoice
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES

from stages.running.errors import InputError
from stages.storage.checkpoint_files import read_config
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.multiple_choice.pairs import TEXTS, Pair, cut, for_a_head, for_a_language_model
from stages.tasks.kinds.multiple_choice.reading import choice_columns
from stages.tasks.kinds.multiple_choice.scores import score_choices
from stages.tasks.kinds.multiple_choice.settings import MultipleChoice
from stages.tasks.loading import Architecture, Model
from stages.tasks.metrics import NO_OUTPUT
from stages.tasks.prediction import Collator
from stages.tasks.text_kind import TextKind
from stages.tasks.texts import Tokenizer, refuse_beyond_embeddings, refuse_longer
from stages.tasks.unlabelled import UnlabelledKind

if TYPE_CHECKING:
    from datasets import Dataset


class MultipleChoiceKind(TextKind, UnlabelledKind[Tokenizer]):
    """Models with a score for each choice; their configuration says whether they are encoders or language models."""

    settings = MultipleChoice
    prediction_batch = 16

    def architecture_of(self, checkpoint: Path) -> tuple[Architecture, str]:
        """A model with a choice head if there is one for its configuration; otherwise a causal language model."""
        if _has_choice_head(read_config(checkpoint)):
            return AutoModelForMultipleChoice, "a model with a choice head"
        return AutoModelForCausalLM, "a causal language model"

    def prepared(self, model: Model, checkpoint: Path) -> Model:
        """A language model has a score for each choice, too; see `score_choices`."""
        if not _has_choice_head(model.config.to_dict()):
            score_choices(model)
        return model

    def load_processor(self, checkpoint: Path) -> Tokenizer:
        """The tokenizer in a checkpoint directory. Raises `InputError` if it cannot say where in a text a token is."""
        tokenizer = super().load_processor(checkpoint)
        if not tokenizer.is_fast:
            raise InputError(
                f"{checkpoint}: its tokenizer ({type(tokenizer).__name__}) does not say where in a text a token is, so "
                "question and choice cannot be told apart; take a base with a tokenizer.json"
            )
        return tokenizer

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """Every example's pairs of question and choice, one after the other, and `lengths`, how long each is.

        For a language model, an example has the `choice_tokens` of each choice besides, and their `weight` in its
        score; where the likelihood is of tokens, `right`, the position of the right choice, says so. If all choices are
        single tokens ("no", "yes"), what the model reads is the same for all, and there once: the question alone.
        `cut` says whether its question is cut; see `cut`. Nothing is drawn.

        Raises:
            InputError: the model is for another `scoring`, or cannot read the examples, or a choice has no token, or
                leaves no room for its question.
        """
        scoring, separator = task.card["scoring"], task.card["separator"]
        _refuse_other_scoring(model, processor, task)
        refuse_longer(task, model)
        examples, shortened = [], []
        for question, *choices in frame[["question", *choice_columns(frame.columns)]].itertuples(index=False):
            if scoring == "head":
                whole = for_a_head(processor, question, choices)
            else:
                whole = for_a_language_model(processor, question, separator, choices)
            examples.append(cut(whole, question, task))
            shortened.append(examples[-1] != whole)
        once = all(pair.inputs == pairs[0].inputs for pairs in examples for pair in pairs)
        read = [pairs[:1] for pairs in examples] if once else examples
        encoded = _flat(read, inspect.signature(model.forward).parameters) | {"cut": shortened}
        refuse_beyond_embeddings(processor, encoded["input_ids"], model)
        if scoring != "head":
            refuse_beyond_embeddings(processor, [pair.choice for pairs in examples for pair in pairs], model)
            encoded["choice_tokens"] = [[pair.choice for pair in pairs] for pairs in examples]
            encoded["weight"] = [
                [1.0 if scoring == "sum" else 1 / len(pair.choice) for pair in pairs] for pairs in examples
            ]
        if task.card["likelihood"] == "token":
            encoded["right"] = frame["label"].tolist()
        return encoded | {"labels": frame["label"].tolist()}

    def remarks(self, rows: "Dataset", encoded: Mapping[str, Sequence[Any]], task: TaskData) -> Iterator[str]:
        """How many questions are cut, if any."""
        if shortened := sum(encoded["cut"]):
            yield (
                f"{shortened} of {len(rows)} questions are cut at their beginnings: with a choice, they have more than "
                f"{task.max_length} tokens"
            )

    def collator(self, processor: Tokenizer, model: Model) -> Collator:
        """Pads all pairs of a list of examples to the longest of them, and the choices' tokens to the most of them."""
        pad = super().collator(processor, model)

        def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
            texts = len(examples[0]["lengths"])
            pairs = [pair for example in examples for pair in _apart(example)]
            batch = {key: tensor.unflatten(0, (-1, texts)) for key, tensor in pad(pairs).items()}
            if "choice_tokens" in examples[0]:
                batch |= _scored(examples, batch["input_ids"].shape[-1])
            known = [key for key in ("right", "labels") if key in examples[0]]
            return batch | {key: torch.tensor([example[key] for example in examples]) for key in known}

        return collate

    def likelihood_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Where the likelihood is of tokens, the right choices alone, [B, T]; the labels [B, M] are their tokens."""
        if "right" not in batch:
            return batch
        rows = torch.arange(len(batch["right"]), device=batch["right"].device)
        read = batch["right"].clamp_max(batch["input_ids"].shape[1] - 1)  # 0 where all choices have one text
        kept = {key: batch[key][rows, read] for key in (*TEXTS, "output_positions") if key in batch}
        tokens = batch["choice_tokens"][rows, batch["right"]].masked_fill(kept["output_positions"] < 0, NO_OUTPUT)
        return kept | {"labels": tokens}

    def sizes(self, encoded: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """How many tokens the longest pair of each example has."""
        return np.array([max(lengths) for lengths in encoded["lengths"]])

    def targets(self, encoded: Mapping[str, Sequence[Any]]) -> list[Any]:
        """The positions of the right choices, a number an example."""
        return list(encoded["labels"])


def _has_choice_head(config: Mapping[str, Any]) -> bool:
    """Whether a model by this configuration has a head for choices; some encoders are decoders if it says so."""
    return config.get("model_type") in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES and not config.get("is_decoder", False)


def _refuse_other_scoring(model: Model, tokenizer: Tokenizer, task: TaskData) -> None:
    scoring, by_head = task.card["scoring"], _has_choice_head(model.config.to_dict())
    if by_head == (scoring == "head"):
        return
    what = "an encoder, which scores choices by a head" if by_head else "a language model, which has no choice head"
    remedy = "`scoring: head`" if by_head else "`scoring: sum` or `scoring: mean`"
    raise InputError(
        f"tasks.{task.name}.scoring = {scoring!r}: {tokenizer.name_or_path} is {what} ({model.config.model_type}); put "
        f"{remedy}, or take another base"
    )


def _flat(examples: Sequence[Sequence[Pair]], taken: Container[str]) -> dict[str, list[Any]]:
    """The pairs' inputs that a model takes, an example's one after the other, and how long each is."""
    keys = [key for key in examples[0][0].inputs if key in taken]
    found = {key: [list(chain.from_iterable(pair.inputs[key] for pair in pairs)) for pairs in examples] for key in keys}
    return found | {"lengths": [[len(pair) for pair in pairs] for pairs in examples]}


def _apart(example: Mapping[str, Any]) -> list[dict[str, list[int]]]:
    """The inputs of each pair of an encoded example."""
    ends = list(accumulate(example["lengths"], initial=0))
    keys = [key for key in TEXTS if key in example]
    return [{key: example[key][start:stop] for key in keys} for start, stop in pairwise(ends)]


def _scored(examples: Sequence[Mapping[str, Any]], length: int) -> dict[str, Tensor]:
    """What `score_choices` takes beside texts of so many positions: [B, C, M] each, or positions [B, 1, M]."""
    most = max(len(tokens) for example in examples for tokens in example["choice_tokens"])
    most += most == length  # so that padding of the one is never taken for padding of the other
    texts, choices = len(examples[0]["lengths"]), len(examples[0]["choice_tokens"])
    positions = torch.full((len(examples), texts, most), -1)
    tokens = torch.zeros((len(examples), choices, most), dtype=torch.long)
    weights = torch.zeros(tokens.shape)
    for row, example in enumerate(examples):
        for text, stop in enumerate(example["lengths"]):
            number = len(example["choice_tokens"][text])
            positions[row, text, :number] = torch.arange(stop - number, stop)
        for choice, own in enumerate(example["choice_tokens"]):
            tokens[row, choice, : len(own)] = torch.tensor(own)
            weights[row, choice, : len(own)] = example["weight"][choice]
    return {"output_positions": positions, "choice_tokens": tokens, "choice_weights": weights}


KIND = MultipleChoiceKind()
