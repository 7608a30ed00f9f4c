"""Language models: what kinds whose models write texts, one token after another, have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from stages.tasks.loading import Architecture, Model
from stages.tasks.metrics import NO_OUTPUT
from stages.tasks.text_kind import TextKind
from stages.tasks.texts import Tokenizer
from stages.tasks.unlabelled import UnlabelledKind

POSITIONS_AT_ONCE = 64  # of an example, whose logits over a vocabulary are many


class LanguageModelKind(TextKind, UnlabelledKind[Tokenizer]):
    """A kind whose models have an output for each token of their vocabulary, at each position.

    What metrics take of an example is the log-likelihood of its trained tokens and their number.

    Attributes:
        architecture: transformers' class of such models.
        what: they are, for messages.
    """

    architecture: ClassVar[Architecture]
    what: ClassVar[str]
    prediction_batch = 8  # an example has as many logits as positions and tokens of the vocabulary

    def architecture_of(self, checkpoint: Path) -> tuple[Architecture, str]:
        """The kind's own, whatever the checkpoint."""
        return self.architecture, self.what

    def outputs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The log-likelihood of each example's trained tokens and their number, [B, 2]; see `log_likelihood`."""
        return log_likelihood(logits, labels)

    def targets(self, encoded: Mapping[str, Sequence[Any]]) -> list[int]:
        """The number of each example's trained tokens: what they are is in the outputs already."""
        return [sum(label != NO_OUTPUT for label in labels) for labels in encoded["labels"]]


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-likelihood of the labels of each example, and the number of these.

    Args:
        logits: [B, T, K].
        labels: [B, T], −100 where there is none.

    Returns:
        [B, 2] in float64; the softmax is in float32, a few positions at a time.
    """
    trained = labels != NO_OUTPUT
    total = torch.zeros(len(labels), dtype=torch.float64, device=logits.device)
    for start in range(0, labels.shape[1], POSITIONS_AT_ONCE):
        here = slice(start, start + POSITIONS_AT_ONCE)
        z = logits[:, here].float()
        own = z.gather(-1, labels[:, here].clamp_min(0)[..., None])[..., 0]
        log_p = (own - z.logsumexp(-1)).double()
        total += torch.where(trained[:, here], log_p, 0).sum(1)
    return torch.stack([total, trained.sum(1).double()], dim=-1)


def greedy(
    model: Model, inputs: Mapping[str, Tensor], *, end: int | None, limit: int, begin: int | None = None
) -> list[list[int]]:
    """What a model goes on with: of all tokens always the most probable one, whatever its generation_config.json says.

    Args:
        model: a language model that its tokenizer agrees with on what pads.
        inputs: `input_ids` [B, T] and an `attention_mask`; padding, if any, is where the model does not go on.
        end: the token that ends a text, after which nothing follows; None if there is none.
        limit: how many tokens at most.
        begin: what a decoder's texts begin with, of models that have an encoder.

    Returns:
        The tokens of each example, with the one that ends it where it is reached.
    """
    own = model.generation_config
    padding = model.config.get_text_config().pad_token_id
    # What is unset would be taken from the model's own configuration, which may sample or search by beams.
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=limit,
        eos_token_id=end,
        pad_token_id=padding,
        decoder_start_token_id=begin,
    )
    try:
        with torch.inference_mode():
            found = model.generate(**inputs, generation_config=model.generation_config)
    finally:
        model.generation_config = own
    read = inputs["input_ids"].shape[1] if begin is None else 1
    return [_until(end, ids) for ids in found[:, read:].tolist()]


def _until(end: int | None, ids: list[int]) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
