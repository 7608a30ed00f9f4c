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
        positions: at which the choices' tokens are predicted, [B, C, M], or [B, 1, M]; −1 for padding.
        tokens: those of the choices, [B, C, M].
        weights: of their log-probabilities in a choice's score, [B, C, M]; 0 for padding.
        labels: the positions of the right choices, [B], if they are known.
        by_token: whether the loss is that of the right choices' tokens.
    """

    positions: Tensor
    tokens: Tensor
    weights: Tensor
    labels: Tensor | None
    by_token: bool

    def loss(self, scores: Tensor, log_p: Tensor) -> Tensor | None:
        """The mean cross-entropy of choices, by their scores [B, C], or of tokens, by their log p [B, C, M].

        None where the right choices are not known.
        """
        if self.labels is None:
            return None
        if not self.by_token:
            return cross_entropy(scores, self.labels)
        right = torch.arange(len(self.labels), device=self.labels.device), self.labels
        return -log_p[right][self.positions.expand_as(log_p)[right] >= 0].mean()


def score_choices(model: Model) -> None:
    """Let a causal language model have a score for each choice, where it is called with `choice_tokens`.

    Besides these, [B, C, M], it gets `input_ids` [B, C, T], `output_positions` [B, C, M], at which the choices' tokens
    are predicted (−1 for padding), and `choice_weights` [B, C, M] w. Where all choices of an example follow the same
    text, the first two are [B, 1, T] and [B, 1, M]. Its logits are then the scores [B, C], the sums Σ w log p over a
    choice's tokens, and with `labels` [B] its loss is their mean cross-entropy; with `right` besides, it is that of the
    right choices' tokens. The last layer, whose outputs are the vocabulary, and the softmax see the choices' positions
    only.

    Called with `output_positions` [B, M] and no `choice_tokens`, it has its logits [B, M, tokens] at these positions.
    """
    uncached = {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}

    def take(
        module: Model, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Kept on the modules: of a model that runs on several devices, each replica has its own.
        decoder = module.get_output_embeddings()
        module.scored = decoder.positions = None
        own = dict(keywords)
        if "choice_tokens" not in keywords:
            decoder.positions = own.pop("output_positions", None)
            return arguments, own if decoder.positions is None else own | uncached
        own.pop("num_items_in_batch", None)  # the Trainer's, which counts what it takes for tokens
        positions, tokens, weights = (own.pop(key) for key in ("output_positions", "choice_tokens", "choice_weights"))
        by_token = own.pop("right", None) is not None
        module.scored = Scored(positions, tokens, weights, own.pop("labels", None), by_token)
        decoder.positions = positions.flatten(0, 1)
        return arguments, own | {key: own[key].flatten(0, 1) for key in TEXTS if key in own} | uncached

    def select(decoder: Model, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if decoder.positions is None:
            return arguments
        hidden: Tensor = arguments[0]
        row = torch.arange(len(hidden), device=hidden.device)[:, None]
        return (hidden[row, decoder.positions.clamp_min(0)],)

    def score(module: Model, _: tuple[Any, ...], output: Any) -> Any:
        if module.scored is None:
            return output
        tokens, weights = module.scored.tokens, module.scored.weights
        logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
        logits = logits.unflatten(0, (len(tokens), -1))
        own = logits.expand(-1, tokens.shape[1], -1, -1).gather(-1, tokens[..., None])[..., 0]
        log_p = own - logits.logsumexp(-1)
        scores = (weights * log_p).sum(-1)
        return MultipleChoiceModelOutput(loss=module.scored.loss(scores, log_p), logits=scores)

    model.register_forward_pre_hook(take, with_kwargs=True)
    model.get_output_embeddings().register_forward_pre_hook(select)
    model.register_forward_hook(score)
