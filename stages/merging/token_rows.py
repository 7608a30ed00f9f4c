"""Rows of embeddings matched by token: which models have a row for it, and where; and the vocabulary that comes of it.

A row without a token, as embeddings have that are padded to a round number, is matched by its own number, with the
models in which that row has no token either.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stages.merging.token_tensors import REMEDY, rows_of
from stages.merging.vocabulary import loaded_tokenizer, tokens_of
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint import BaseWeights, Checkpoint
from stages.storage.checkpoint_files import config_file
from stages.storage.statistic_files import StatisticFiles
from stages.storage.tensors import Selection, TensorFiles

Vocabulary = Literal["same", "shared", "union"]
Key = str | int  # a token; or the number of a row that has none
Rows = dict[Key, int]

_ROWS_OF_PART = {"input": False, "output": True}  # a factor's part → whether it is over the weight's rows


@dataclass(frozen=True)
class Group:
    """Rows of the result that the same models have.

    Attributes:
        models: those that have them, in the order of the merge.
        in_base: whether the base has them.
        places: the rows' numbers in the result.
        keys: what they are of.
    """

    models: tuple[str, ...]
    in_base: bool
    places: Tensor
    keys: Sequence[Key]

    def part(self, tensor: str) -> str:
        """What these rows of a tensor are called where they are merged; it depends on who has them alone."""
        return f"{tensor} (rows of {list(self.models)}{' and the base' if self.in_base else ''})"


@dataclass(frozen=True)
class TokenRows:
    """Which row of every model, and of the base, becomes which row of the result.

    Attributes:
        vocabulary: how the result's tokens are chosen.
        tensors: the names of those that have a row per token, and are merged.
        result: what the result's rows are of.
        models: each model's rows.
        base: the base's rows, empty where there is none.
        tokenizer: the target's, with the tokens that are added to it; None where none are.
        added: these tokens.
    """

    vocabulary: Vocabulary
    tensors: frozenset[str]
    result: Sequence[Key]
    models: Mapping[str, Rows]
    base: Rows
    tokenizer: Any
    added: Sequence[str]

    @cached_property
    def groups(self) -> list[Group]:
        """The result's rows, by who has them."""
        found: dict[tuple[tuple[str, ...], bool], list[int]] = {}
        for place, key in enumerate(self.result):
            having = tuple(name for name, rows in self.models.items() if key in rows)
            found.setdefault((having, key in self.base), []).append(place)
        return [
            Group(models, in_base, torch.tensor(places), [self.result[place] for place in places])
            for (models, in_base), places in found.items()
        ]

    @property
    def tokens(self) -> dict[str, int]:
        """The result's tokens."""
        return {key: place for place, key in enumerate(self.result) if isinstance(key, str)}

    def parts_of(self, model: str) -> Iterator[str]:
        """What a model's rows in the result are called, of all tensors."""
        return (group.part(name) for name in sorted(self.tensors) for group in self.groups if model in group.models)

    def of_checkpoint(self, model: str, files: TensorFiles) -> TensorFiles:
        """A model's tensors, with the rows that go into each group besides."""
        return files.with_selections(self._selections(files, model, self.tensors))

    def of_statistic(self, model: str, files: StatisticFiles) -> StatisticFiles:
        """A model's statistic, with that of these rows besides: of a factor over rows, their rows and columns."""
        if files.kind.is_of_parameters:
            return replace(files, tensors=self.of_checkpoint(model, files.tensors))
        selections: dict[str, Selection] = {}
        for part in files.kind.parts:
            keys = {name: files.kind.key(part, name) for name in self.tensors}
            present = {name: key for name, key in keys.items() if key in files.tensors.specs}
            if present and part not in _ROWS_OF_PART:
                raise InputError(
                    f"{files.tensors.file}: tensor {min(present.values())}: it is not known how to match "
                    f"{files.kind.title} by token; {REMEDY}"
                )
            for name, key in present.items():
                own = self._selections(files.tensors, model, [name], stored=key)
                for called, selection in own.items():
                    rows = selection.rows if _ROWS_OF_PART[part] else None
                    selections[files.kind.key(part, called)] = Selection(key, rows, square=True)
        return replace(files, tensors=files.tensors.with_selections(selections))

    def of_base(self, base: BaseWeights) -> BaseWeights:
        """The base, with its rows of each group that it has besides."""
        view, selections = copy(base), {}
        for name in self.tensors:
            if (own := base.name_of(name)) is not None:
                for group in self.groups:
                    if group.in_base:
                        rows = torch.tensor([self.base[key] for key in group.keys])
                        selections[group.part(name)] = Selection(own, rows)
        view.tensors = base.tensors.with_selections(selections)
        return view

    def _selections(
        self, files: TensorFiles, model: str, names: Iterable[str], stored: str | None = None
    ) -> dict[str, Selection]:
        own = self.models[model]
        return {
            group.part(name): Selection(stored or name, torch.tensor([own[key] for key in group.keys]))
            for name in names
            if (stored or name) in files.specs
            for group in self.groups
            if model in group.models
        }

    def digest(self) -> str:
        """SHA-256 of what every row of all models, the base and the result is of."""
        models = [[name, list(rows.items())] for name, rows in self.models.items()]
        return sha256(json.dumps([list(self.result), models, list(self.base.items())]).encode()).hexdigest()

    def numbers(self) -> dict[str, Any]:
        """What a card says: how the tokens were chosen, and how many there are of what kind."""
        target, *others = self.models.values()
        tokens = self.tokens
        everywhere = sum(all(token in rows for rows in self.models.values()) for token in tokens)
        known = {key for rows in others for key in rows if isinstance(key, str)}
        return {
            "rule": self.vocabulary,
            "tokens": len(tokens),
            "shared": everywhere,
            "target alone": sum(token in target and token not in known for token in tokens),
            "added": len(self.added),
            "left out": len(known - tokens.keys()),
        }

    def write(self, directory: Path) -> None:
        """Write the tokenizer with what has been added to it, and the number of rows, into the result's directory.

        Raises:
            InputError: the tokenizer that has been written gives a token another number than its row's.
        """
        if not self.added:
            return
        for key in ("is_local", "local_files_only"):  # of how it was loaded, which transformers would write down
            self.tokenizer.init_kwargs.pop(key, None)
        self.tokenizer.save_pretrained(directory)
        for found in (tokens_of(directory), dict(loaded_tokenizer(directory).get_vocab())):
            for token, row in self.tokens.items():
                if found.get(token) != row:
                    raise InputError(
                        f"{directory}: the token {token!r} is number {found.get(token)} of the saved tokenizer, "
                        f"but row {row} of the embeddings; set `vocabulary: shared`"
                    )
        _write_vocabulary_size(directory, len(self.result))


def match_rows(
    vocabulary: Vocabulary,
    checkpoints: Mapping[str, Checkpoint],
    base: BaseWeights | None,
    tensors: set[str],
    kept: set[str],
) -> TokenRows | None:
    """How rows are matched; None where all models, and the base, have the same rows as the target.

    Args:
        vocabulary: which tokens the result has.
        checkpoints: the models, the target first.
        base: theirs, if it has a part in the merge.
        tensors: the names of those that have a row per token.
        kept: of which the result has the target's, as they are.

    Raises:
        InputError: nothing has a row per token; a kept tensor would need more rows; a tokenizer is missing, larger than
            the embeddings or unfit to be compared; or a token that the target lacks cannot be added to its tokenizer.
    """
    target, *_ = checkpoints.values()
    if not tensors:
        raise InputError(f"{target.tensors.file}: has no embeddings of tokens; leave out `vocabulary: {vocabulary}`")
    models = {
        name: _rows(checkpoint.directory, rows_of(checkpoint.tensors, tensors), checkpoint.tensors)
        for name, checkpoint in checkpoints.items()
    }
    ours = next(iter(models.values()))
    base_rows: Rows = {}
    if base is not None and (own := {name for each in tensors if (name := base.name_of(each)) is not None}):
        base_rows = _rows(base.directory, rows_of(base.tensors, own), base.tensors)
    if all(rows == ours for rows in models.values()) and (base is None or base_rows == ours):
        return None
    result: list[Key] = sorted(ours, key=ours.__getitem__)
    tokenizer, added = None, dict[str, int]()
    if vocabulary == "union":
        tokenizer, added = _with_added(target, [(each.directory, models[name]) for name, each in checkpoints.items()])
        for token, number in sorted(added.items(), key=lambda item: item[1]):
            result[number : number + 1] = [token]
    if added and (alone := sorted(tensors & kept)):
        raise InputError(
            f"{target.tensors.file}: tensor {alone[0]} is kept as the target's, so it has no row for the added token "
            f"{min(added)!r}; set `vocabulary: shared`, or `heads: merge` for models of one head"
        )
    return TokenRows(vocabulary, frozenset(tensors - kept), result, models, base_rows, tokenizer, list(added))


def _rows(directory: Path, number: int, files: TensorFiles) -> Rows:
    """What each of a checkpoint's rows is of."""
    tokens = tokens_of(directory)
    for token, row in tokens.items():
        if not 0 <= row < number:
            raise InputError(
                f"{files.file}: the embeddings have {number} rows, but the token {token!r} is number {row}; "
                "save the model with the tokenizer that it was trained with, or resize it (`resize_token_embeddings`)"
            )
    named = set(tokens.values())
    rows: Rows = dict(tokens.items())
    return rows | {row: row for row in range(number) if row not in named}


def _with_added(target: Checkpoint, models: Sequence[tuple[Path, Rows]]) -> tuple[Any, dict[str, int]]:
    """The target's tokenizer with the tokens that the other models have besides, and the numbers these have there.

    They are added model by model, in the order of their own numbers, with the flags that they have there.
    """
    (_, ours), *others = models
    wanted: dict[str, Any] = {}
    for directory, theirs in others:
        lacked = [key for key in theirs if isinstance(key, str) and key not in ours and key not in wanted]
        if not lacked:
            continue
        flagged = {token.content: token for token in loaded_tokenizer(directory).added_tokens_decoder.values()}
        for token in sorted(lacked, key=theirs.__getitem__):
            if token not in flagged:
                raise InputError(
                    f"{directory}: the token {token!r}, which {target.directory} lacks, is none that was added to its "
                    "tokenizer, but a piece of its words, which cannot be added to another; set `vocabulary: shared`"
                )
            wanted[token] = flagged[token]
    if not wanted:
        return None, {}
    tokenizer = loaded_tokenizer(target.directory)
    tokenizer.add_tokens(list(wanted.values()))
    vocabulary = tokenizer.get_vocab()
    numbers = {token: vocabulary.get(token) for token in wanted}
    first = 1 + max((row for key, row in ours.items() if isinstance(key, str)), default=-1)
    for free, (token, number) in enumerate(numbers.items(), start=first):
        if number != free:
            raise InputError(
                f"{target.directory}: its tokenizer gives the added token {token!r} the number {number}, which is not "
                "the next row of its embeddings; set `vocabulary: shared`"
            )
    return tokenizer, numbers


def _write_vocabulary_size(directory: Path, rows: int) -> None:
    """Let config.json say how many rows there are, wherever it says that."""
    file = config_file(directory)
    config = read_json(file)
    stating = [part for part in (config, config.get("text_config")) if isinstance(part, dict) and "vocab_size" in part]
    if len(stating) != 1:
        raise InputError(
            f"{file}: has {len(stating)} keys vocab_size, so it cannot be made to say how many rows the union has; "
            "set `vocabulary: shared`"
        )
    stating[0]["vocab_size"] = rows
    write_json(file, config)
