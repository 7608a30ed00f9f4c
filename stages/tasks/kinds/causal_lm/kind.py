"""Causal language modelling: each token of a text is predicted from those before it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stages.running.errors import InputError, TooLongError
from stages.storage.checkpoint_files import config_file
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.causal_lm.conversations import ChatTemplate
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.tasks.language_model import LanguageModelKind, greedy
from stages.tasks.loading import Model
from stages.tasks.metrics import NO_OUTPUT
from stages.tasks.outputs import Written
from stages.tasks.prediction import Examples
from stages.tasks.texts import Tokenizer, plain_tokens, position_limit, refuse_beyond_embeddings, refuse_longer

PROBE = "a 0 ."  # a text, to see what a tokenizer puts before one
TokensOfExample = tuple[list[int], list[bool]]  # and which of them are trained


class CausalLMKind(LanguageModelKind):
    """Models that write on from where a text stops."""

    settings = CausalLM
    architecture = AutoModelForCausalLM
    what = "a causal language model"

    def prepared(self, model: Model, checkpoint: Path) -> Model:
        """The model as it is. Raises `InputError` if it looks ahead."""
        refuse_looking_ahead(model, checkpoint)
        return model

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """Token ids, masks, and labels, which are −100 where nothing is trained; nothing is drawn.

        Raises:
            InputError: the model cannot read the examples, none of an example's tokens is trained, or the chat template
                does not suit the conversations.
        """
        refuse_longer(task, model)
        encoded: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for (_, example), (ids, trained) in zip(frame.iterrows(), _tokens(processor, frame, task), strict=True):
            # Nothing is before the first token, from which it could be predicted.
            labels = [NO_OUTPUT, *(id_ if own else NO_OUTPUT for id_, own in zip(ids[1:], trained[1:], strict=True))]
            if all(label == NO_OUTPUT for label in labels[: task.max_length]):
                raise TooLongError(
                    f"{task.directory}: the example {example.iloc[0][:60]!r} has no token to train among the first "
                    f"{task.max_length} of its {len(ids)} tokens; raise tasks.{task.name}.max_length, or remove it"
                )
            encoded["input_ids"].append(ids[: task.max_length])
            encoded["attention_mask"].append([1] * len(encoded["input_ids"][-1]))
            encoded["labels"].append(labels[: task.max_length])
        refuse_beyond_embeddings(processor, encoded["input_ids"], model)
        return encoded

    def outputs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The log-likelihood of each example's trained tokens and their number, [B, 2]: position t predicts t + 1."""
        return super().outputs(logits[:, :-1], labels[:, 1:])

    def written(self, model: Model, examples: Examples, rows: Sequence[int], limit: int) -> list[Written]:
        """How the model goes on from before the first trained token; of texts, which are trained whole, from half."""
        tokenizer, found = examples.processor, []
        most = position_limit(model)
        for row in rows:
            ids, labels = (list(examples.encoded[key][row]) for key in ("input_ids", "labels"))
            trained = [label != NO_OUTPUT for label in labels]
            begin = max(1, len(ids) // 2) if examples.task.card["form"] == "text" else trained.index(True)
            end = trained.index(False, begin) if False in trained[begin:] else len(ids)
            prompt = torch.tensor([ids[:begin]])
            inputs = examples.placement.batch({"input_ids": prompt, "attention_mask": torch.ones_like(prompt)})
            room = limit if most is None else min(limit, most - begin)
            (own,) = greedy(model, inputs, end=tokenizer.eos_token_id, limit=room)
            reference, text = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[begin:end], own))
            found.append(Written(tokenizer.decode(ids[:begin]), reference, text))
        return found


def refuse_looking_ahead(model: Model, checkpoint: Path) -> None:
    """Raise `InputError` if what a model predicts depends on tokens that come later, as BERT's and XLNet's does."""
    trains = model.training
    with torch.no_grad():
        first, other = (model.eval()(input_ids=torch.tensor([[0, later]])).logits[0, 0] for later in (0, 1))
    model.train(trains)
    if (first - other).abs().max() > 1e-5 * first.abs().max():
        raise InputError(
            f"{config_file(checkpoint)}: the model sees the tokens after those that it predicts; take a causal one "
            "(BERT and its kin are causal with `is_decoder: true`)"
        )


def _tokens(tokenizer: Tokenizer, frame: pd.DataFrame, task: TaskData) -> Iterator[TokensOfExample]:
    """The tokens of each example, whole."""
    if task.card["form"] == "messages":
        template = ChatTemplate(tokenizer, task.name)
        for conversation in frame["messages"]:
            yield template.tokens(json.loads(conversation))
        return
    texts = [frame[column].tolist() for column in frame]
    columns = [plain_tokens(tokenizer, column, task) for column in texts]
    opening = _opening(tokenizer, PROBE, plain_tokens(tokenizer, [PROBE], task)[0])
    ending = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for *before, last in zip(*columns, strict=True):
        given = opening + [id_ for part in before for id_ in part]
        yield given + last + ending, [False] * len(given) + [True] * len(last + ending)


def _opening(tokenizer: Tokenizer, text: str, plain: list[int]) -> list[int]:
    """What the tokenizer puts before a text whose own tokens these are."""
    whole: list[int] = tokenizer(text)["input_ids"]
    starts = range(len(whole) - len(plain) + 1)
    return next((whole[:start] for start in starts if whole[start : start + len(plain)] == plain), [])


KIND = CausalLMKind()
