"""Scores of choices [B, C] in place of a language model's logits, without another name for a parameter."""

from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import MultipleChoiceModelOutput

from stages.tasks.kinds.multiple_choice.pairs import TEXTS
from stages.tasks.loading import Model


class Scored(NamedTuple):
    """What a language model's call is to score.

    Attributes:
        positions: at which the choices' tokens are predicted, [B, C, M]; −1 for padding.
        tokens: those of the choices, [B, C, M].
        weights: of their log-probabilities in a choice's score, [B, C, M]; 0 for padding.
        labels: the positions of the right choices, [B], if they are known.
    """

    positions: Tensor
    tokens: Tensor
    weights: Tensor
    labels: Tensor | None


def score_choices(model: Model) -> None:
    """Let a causal language model have a score for each choice, where it is called with `choice_tokens`.

    Besides these, [B, C, M], it gets `input_ids` [B, C, T], `output_positions` [B, C, M], at which the choices' tokens
    are predicted (−1 for padding), and `choice_weights` [B, C, M] w. Its logits are then the scores [B, C], the sums
    Σ w log p over a choice's tokens, and with `labels` [B] its loss is their mean cross-entropy. The last layer, whose
    outputs are the vocabulary, and the softmax see the choices' positions only.
    """
    uncached = {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}

    def take(
        module: Model, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Kept on the modules: of a model that runs on several devices, each replica has its own.
        decoder = module.get_output_embeddings()
        module.scored = decoder.scored = None
        if "choice_tokens" not in keywords:
            return arguments, keywords
        own = dict(keywords)
        own.pop("num_items_in_batch", None)  # the Trainer's, which counts what it takes for tokens
        positions, tokens, weights = (own.pop(key) for key in ("output_positions", "choice_tokens", "choice_weights"))
        module.scored = decoder.scored = Scored(positions, tokens, weights, own.pop("labels", None))
        return arguments, own | {key: own[key].flatten(0, 1) for key in TEXTS if key in own} | uncached

    def select(decoder: Model, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if decoder.scored is None:
            return arguments
        hidden: Tensor = arguments[0]
        row = torch.arange(len(hidden), device=hidden.device)[:, None]
        return (hidden[row, decoder.scored.positions.flatten(0, 1).clamp_min(0)],)

    def score(module: Model, _: tuple[Any, ...], output: Any) -> Any:
        if module.scored is None:
            return output
        _, tokens, weights, labels = module.scored
        logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
        own = logits.gather(-1, tokens.flatten(0, 1)[..., None])[..., 0]
        log_p = (own - logits.logsumexp(-1)).unflatten(0, tokens.shape[:2])
        scores = (weights * log_p).sum(-1)
        loss = None if labels is None else cross_entropy(scores, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=scores)

    model.register_forward_pre_hook(take, with_kwargs=True)
    model.get_output_embeddings().register_forward_pre_hook(select)
    model.register_forward_hook(score)
