"""Masked language modelling: a text's hidden tokens are predicted from the others (Devlin et al. 2019, section 3.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from stages.running.errors import InputError
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.masked_lm.settings import MaskedLM
from stages.tasks.loading import Architecture, Model
from stages.tasks.prediction import Collator
from stages.tasks.text_kind import TextKind
from stages.tasks.texts import Tokenizer, embedding_rows, tokens
from stages.tasks.unlabelled import UnlabelledKind

MASKED = 0.15  # of a text's tokens, at least one
REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.8, 0.1  # of those; the others stay, and are predicted too
PADDING = {"output_positions": -1, "labels": -100}


def select_positions(model: Model) -> None:
    """Let a model of logits [B, T, K] have logits [B, M, K] where it is called with `output_positions` besides.

    These are [B, M], of positions 0…T−1, or −1 for padding, whose logits mean nothing. The head, whose K outputs are a
    vocabulary, then sees a seventh of the positions, which saves most of its time and memory.
    """

    def take(
        module: Model, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Kept on the module: of a model that runs on several devices, each replica has its own.
        module.base_model.output_positions = keywords.get("output_positions")
        return arguments, {key: value for key, value in keywords.items() if key != "output_positions"}

    def select(body: Model, _: tuple[Any, ...], output: Any) -> Any:
        if body.output_positions is not None:
            hidden: Tensor = output.last_hidden_state
            example = torch.arange(len(hidden), device=hidden.device)[:, None]
            output.last_hidden_state = hidden[example, body.output_positions.clamp_min(0)]
        return output

    model.register_forward_pre_hook(take, with_kwargs=True)
    model.base_model.register_forward_hook(select)


class Masking:
    """Chooses tokens of a text and hides them, as BERT's training does.

    Of 15 % of the tokens that are not special, at least one, 80 % become the mask, 10 % a token of the vocabulary
    drawn at random, and 10 % stay as they are. The draws belong to the seed, the example's number and the epoch.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._seed = seed
        self._mask = tokenizer.mask_token_id
        self._vocabulary = len(tokenizer)
        self._special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}  # unknown words are words

    def candidates(self, ids: Sequence[int]) -> list[int]:
        """The positions that may be masked."""
        return [position for position, token in enumerate(ids) if token not in self._special]

    def masked(self, ids: Sequence[int], example: int, epoch: int = 0) -> dict[str, list[int]]:
        """`input_ids` with masks, and the `output_positions` to predict with the `labels` that were there."""
        generator = np.random.default_rng([self._seed, example, epoch])
        candidates = self.candidates(ids)
        positions = np.sort(generator.choice(candidates, max(1, round(MASKED * len(candidates))), replace=False))
        labels = np.asarray(ids)[positions]
        fate = generator.random(len(positions))
        drawn = generator.integers(self._vocabulary, size=len(positions))
        stays = np.where(fate < REPLACED_BY_MASK + REPLACED_AT_RANDOM, drawn, labels)
        shown = np.array(ids)
        shown[positions] = np.where(fate < REPLACED_BY_MASK, self._mask, stays)
        return {"input_ids": shown.tolist(), "output_positions": positions.tolist(), "labels": labels.tolist()}


class MaskedTexts(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Encoded texts whose tokens are hidden anew in every epoch, whatever came before: also in a training that goes on.

    Args:
        tokenizer: that they were encoded with.
        encoded: what `encode` gives.
        seed: of the draws.
    """

    def __init__(self, tokenizer: Tokenizer, encoded: Mapping[str, Sequence[Any]], seed: int) -> None:
        self._masking = Masking(tokenizer, seed)
        self._encoded = encoded
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader of the batches before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._encoded["input_ids"])

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        example = {key: values[number] for key, values in self._encoded.items()}
        return example | self._masking.masked(_unmasked(example), number, self._epoch)


def _unmasked(example: Mapping[str, list[int]]) -> list[int]:
    ids = list(example["input_ids"])
    for position, label in zip(example["output_positions"], example["labels"], strict=True):
        ids[position] = label
    return ids


class MaskedLMKind(TextKind, UnlabelledKind[Tokenizer]):
    """Models that predict hidden tokens; their outputs are `select_positions`'s, one a token of the vocabulary."""

    settings = MaskedLM

    def architecture_of(self, checkpoint: Path) -> tuple[Architecture, str]:
        """A masked-LM model, whatever the checkpoint."""
        return AutoModelForMaskedLM, "a masked-LM model"

    def prepared(self, model: Model, checkpoint: Path) -> Model:
        """A model that has logits at the hidden positions alone; see `select_positions`."""
        select_positions(model)
        return model

    def load_processor(self, checkpoint: Path) -> Tokenizer:
        """The tokenizer in a checkpoint directory. Raises `InputError` if it cannot be loaded or knows no mask."""
        tokenizer = super().load_processor(checkpoint)
        if tokenizer.mask_token_id is None:
            raise InputError(f"{checkpoint}: its tokenizer has no mask token; take a base that was trained with one")
        return tokenizer

    def encode(self, processor: Tokenizer, frame: pd.DataFrame, task: TaskData, model: Model, seed: int) -> Encoded:
        """Every text's token ids and masks, without padding, with tokens hidden by `Masking` at epoch 0.

        Texts of which the tokenizer makes no token are left out.

        Raises:
            InputError: the model cannot read them (see `stages.tasks.texts.tokens`), or the tokenizer has more tokens
                than the model, any of which may be drawn.
        """
        found = tokens(processor, frame, task, model)
        embedded = embedding_rows(model)
        if embedded is not None and len(processor) > embedded:
            raise InputError(
                f"{processor.name_or_path}: its tokenizer has {len(processor)} tokens, but the model has embeddings of "
                f"{embedded}; take the tokenizer that it was trained with, or call its resize_token_embeddings and "
                "save it"
            )
        masking = Masking(processor, seed)
        whole = [row for row, ids in enumerate(found["input_ids"]) if masking.candidates(ids)]
        encoded = {key: [values[row] for row in whole] for key, values in found.items()}
        masked = [masking.masked(found["input_ids"][row], int(frame.index[row])) for row in whole]
        return encoded | {key: [example[key] for example in masked] for key in ("input_ids", *PADDING)}

    def training_set(self, processor: Tokenizer, encoded: Mapping[str, Sequence[Any]], seed: int) -> MaskedTexts:
        """The examples to train on, whose tokens are hidden anew in every epoch."""
        return MaskedTexts(processor, encoded, seed)

    def collator(self, processor: Tokenizer, model: Model) -> Collator:
        """Pads a list of examples to the longest of them, and what is to predict to the most of it."""
        pad_tokens = super().collator(processor, model)

        def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
            plain = [{key: value for key, value in example.items() if key not in PADDING} for example in examples]
            most = max(len(example["labels"]) for example in examples)
            predicted = {
                key: torch.tensor([example[key] + [padding] * (most - len(example[key])) for example in examples])
                for key, padding in PADDING.items()
            }
            return {**pad_tokens(plain), **predicted}

        return collate


KIND = MaskedLMKind()
