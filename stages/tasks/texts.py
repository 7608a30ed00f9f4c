"""Texts as a model's input: its tokenizer, which texts and tokens it can read, and batches of them with padding."""

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from stages.running.errors import InputError
from stages.storage.cards import refuse_pointer
from stages.storage.configuration import configuration_files
from stages.tasks.data import TaskData
from stages.tasks.loading import Model
from stages.tasks.metrics import NO_OUTPUT
from stages.tasks.prediction import Collator

Tokenizer = Any  # transformers has no common base of fast and slow tokenizers that type checkers understand

VOCABULARY_FILES = ("tokenizer.json", "tekken.json", "*vocab*", "*bpe*", "*.codes", "*.model", "*.spm", "*.tiktoken")
MOST_UNKNOWN = 0.5  # share of a task's tokens; where there are more, a model learns and is measured by next to nothing


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer in a checkpoint directory.

    Raises:
        InputError: there is none, or it cannot be loaded. Where its files are missing, transformers makes one that
            knows no word.
    """
    for file in configuration_files(checkpoint):
        refuse_pointer(checkpoint / file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
        vocabulary = set(tokenizer.get_vocab())
    except Exception as error:  # whatever transformers makes of broken files
        raise InputError(f"{checkpoint}: {_why_not_loadable(checkpoint, error)}") from None
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if len(vocabulary - special - set(tokenizer.all_special_tokens)) < 2:  # one may be the mark of a word's beginning
        files = " or ".join(name for name in tokenizer.vocab_files_names.values() if name != "tokenizer_config.json")
        raise InputError(
            f"{checkpoint}: its tokenizer knows no words; {type(tokenizer).__name__} reads them from {files}: put the "
            "files of the tokenizer that the model was trained with beside its config.json"
        )
    return tokenizer


def _why_not_loadable(checkpoint: Path, error: Exception) -> str:
    """What is wrong with a tokenizer; transformers' own advice misleads where a file or a package is missing."""
    files = [file for pattern in VOCABULARY_FILES for file in sorted(checkpoint.glob(pattern))]
    if not files:
        return "has no tokenizer; put the files of the one that the model was trained with beside its config.json"
    model = next((file for file in files if file.suffix in (".model", ".spm", ".tiktoken")), None)
    if model is not None and not (checkpoint / "tokenizer.json").is_file():
        tiktoken = re.match(rb"[A-Za-z0-9+/]+=* \d+\n", model.read_bytes()[:200]) is not None
        packages = "package tiktoken" if tiktoken else "packages sentencepiece and protobuf"
        if not tiktoken and is_sentencepiece_available() and is_protobuf_available():
            return f"its tokenizer's {model.name} cannot be read by sentencepiece; fetch or make it again"
        if "tiktoken" in str(error) or "entence" in str(error):
            return (
                f"its tokenizer is in {model.name} alone, which needs the {packages}; install what is missing, or "
                "add the tokenizer.json that the tokenizer's save_pretrained writes where that is installed"
            )
    return f"its tokenizer cannot be loaded: {' '.join(str(error).split())[:400]}"


def tokens(tokenizer: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model) -> dict[str, list[Any]]:
    """Token ids and masks of every text, or pair of texts, without padding: those inputs that the model takes.

    Raises:
        InputError: the task's texts may be longer than the model's positions, or it has no embedding of a token.
    """
    refuse_longer(task, model)
    found = tokenizer(
        frame["text"].tolist(),
        frame["text_pair"].tolist() if "text_pair" in frame else None,
        truncation=True,
        max_length=task.max_length,
        return_attention_mask=takes_mask(model),
    )
    return inputs_of(tokenizer, found, model)


def takes_mask(model: Model) -> bool:
    """Whether the model is told which tokens are padding."""
    return "attention_mask" in inspect.signature(model.forward).parameters


def inputs_of(tokenizer: Tokenizer, found: Mapping[str, list[Any]], model: Model) -> dict[str, list[Any]]:
    """Those of a tokenizer's results that the model takes. Raises `InputError` if it has no embedding of a token."""
    refuse_beyond_embeddings(tokenizer, found["input_ids"], model)
    taken = inspect.signature(model.forward).parameters
    return {key: values for key, values in found.items() if key in taken}


def some_tokens(tokenizer: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model) -> dict[str, list[Any]]:
    """`tokens`, of which every text has one at least.

    Raises:
        InputError: see `tokens`, or the tokenizer makes nothing of a text.
    """
    found = tokens(tokenizer, frame, task, model)
    _refuse_without_tokens(tokenizer, frame["text"], found["input_ids"], task)
    return found


def plain_tokens(tokenizer: Tokenizer, found: Sequence[str], task: TaskData) -> list[list[int]]:
    """The texts' own tokens, all of them, without those that the tokenizer puts around a text.

    Raises:
        InputError: it makes no token of a text.
    """
    plain: list[list[int]] = tokenizer(list(found), add_special_tokens=False)["input_ids"]
    _refuse_without_tokens(tokenizer, found, plain, task)
    return plain


def _refuse_without_tokens(
    tokenizer: Tokenizer, texts: Iterable[str], tokens: Sequence[Sequence[int]], task: TaskData
) -> None:
    for text, ids in zip(texts, tokens, strict=True):
        if not ids:
            raise InputError(
                f"{tokenizer.name_or_path}: its tokenizer makes no token of the text {text[:40]!r} of {task.name}; "
                "remove it from the table, or take another base"
            )


def refuse_longer(task: TaskData, model: Model) -> None:
    """Raise `InputError` if the task's texts may be longer than the model's positions."""
    limit = position_limit(model)
    if limit is not None and task.max_length > limit:
        raise InputError(
            f"tasks.{task.name}.max_length = {task.max_length}: the model reads at most {limit} tokens; lower it"
        )


def refuse_beyond_embeddings(tokenizer: Tokenizer, texts: Sequence[Sequence[int]], model: Model) -> None:
    """Raise `InputError` if the model has no embedding of a token in these texts."""
    largest, rows = max(chain.from_iterable(texts), default=0), embedding_rows(model)
    if rows is not None and largest >= rows:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer makes the token {tokenizer.convert_ids_to_tokens(largest)!r}, "
            f"number {largest}, but the model has embeddings of {rows} tokens; take the tokenizer that it was trained "
            "with, or call its resize_token_embeddings and save it"
        )


def refuse_unknown(tokenizer: Tokenizer, encoded: Mapping[str, Sequence[Any]], task: TaskData) -> None:
    """Raise `InputError` if most tokens of a task's training texts are the unknown token."""
    others = {getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos", "cls", "sep", "mask")}
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id not in others else None  # GPT-2 has one for everything
    special = set(tokenizer.all_special_ids) - {unknown}
    times = Counter(chain.from_iterable(encoded["input_ids"]))
    ordinary = sum(count for token, count in times.items() if token not in special)
    if (count := times[unknown]) > MOST_UNKNOWN * ordinary:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer does not know {count} of the {ordinary} tokens "
            f"({count / ordinary:.0%}) of the training texts of {task.name}, which are {tokenizer.unk_token!r}; "
            "take the tokenizer that the model was trained with, or a base for such texts"
        )


def embedding_rows(model: Model) -> int | None:
    """How many tokens the model has embeddings of; None if it computes them (CANINE)."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:  # by which transformers says that this model has no such embeddings
        return None
    return len(weight) if isinstance(weight, torch.Tensor) else None


def position_limit(model: Model) -> int | None:
    """How many tokens the model reads, if that is limited.

    It is where positions have embeddings; RoBERTa and its kin number them from behind the padding token's number, and
    have so many fewer. Rotary positions go on beyond what a config says, but the model has not been made for them.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    if getattr(config, "alibi", False) or getattr(config, "position_biased_input", True) is False:
        return None  # Falcon's and DeBERTa's where they are relative only
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and (padding := getattr(module, "padding_idx", None)) is not None:
            return len(module.weight) - padding - 1
    return limit


def lengths(lists: Sequence[Sequence[Any]]) -> np.ndarray:
    """How long each of the lists is."""
    return np.fromiter(map(len, lists), np.int64, len(lists))


def collator(tokenizer: Tokenizer, model: Model) -> Collator:
    """Pads a list of examples to the longest of them, with what the model takes for padding; see `agree_on_padding`."""
    agree_on_padding(tokenizer, model)
    config = model.config.get_text_config()
    padding = {
        "input_ids": config.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "labels": NO_OUTPUT,  # where they are of tokens
    }
    # XLNet's head reads the last position. Everywhere else a position's number counts from the text's beginning.
    side = "left" if getattr(config, "summary_type", None) == "last" else "right"

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            key: pad_sequence([torch.tensor(example[key]) for example in examples], True, padding.get(key, 0), side)
            if isinstance(first, Sequence)
            else torch.tensor([example[key] for example in examples])
            for key, first in examples[0].items()
        }

    return collate


def agree_on_padding(tokenizer: Tokenizer, model: Model) -> None:
    """Let a tokenizer and a model have the same padding token, one of those that they have.

    The model's config decides if it names one: heads find a text's last token by it. Otherwise it is the tokenizer's,
    or, where that has none either, the token that ends a text, as transformers recommends; both are told.

    Raises:
        InputError: there is no such token.
    """
    rows, config = embedding_rows(model), model.config.get_text_config()

    def usable(token: object) -> bool:
        return isinstance(token, int) and token >= 0 and (rows is None or token < rows)

    candidates = [
        getattr(config, "pad_token_id", None),
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ]
    chosen = next((token for token in candidates if usable(token)), None)
    if chosen is None:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no token to pad with; name one of its tokens as `pad_token` "
            "in tokenizer_config.json"
        )
    config.pad_token_id = chosen
    if not usable(tokenizer.pad_token_id):
        own = {tokenizer.convert_tokens_to_ids(token): token for token in tokenizer.all_special_tokens}
        tokenizer.pad_token = own.get(chosen)
    if rows is not None and chosen in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        model.get_input_embeddings().padding_idx = None  # it stands in texts too, where its embedding counts
