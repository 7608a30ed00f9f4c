"""What a model's outputs mean: vectors s whose backward passes Jᵀ s give the Fisher, E[(Jᵀ s)²] = diag(Jᵀ Σ J).

With z the outputs of one example and p(y|z) the likelihood, Σ = E_y[∇_z log p ∇_z log pᵀ]. Each likelihood yields,
for a batch, tensors of the outputs' shape:

- `exact`: the columns of a factor L of Σ = L Lᵀ; the squares of their backward passes add up to the diagonal.
- `sketch`: L ε with random signs ε: one pass, unbiased, and less noisy than a sampled label.
- `sampled`: ∇_z log p(y|z) of a label y drawn from the model.
- `empirical`: ∇_z log p(y|z) of the observed label. This is not the Fisher, but what some papers use for it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from stages.curvature.draws import Draws
from stages.curvature.errors import CurvatureError

MOST_TOKEN_COLUMNS = 16  # of an exact token-level Fisher: a backward pass each
NO_PARAMETERS: Mapping[str, float] = MappingProxyType({})


class Likelihood(Protocol):
    """A likelihood of a batch's outputs. `batch` is the model's input, with `labels` where they are needed.

    An object of any class that has these is one: nothing has to be told of it.
    """

    @property
    def name(self) -> str:
        """What the card of a Fisher calls it."""

    @property
    def parameters(self) -> Mapping[str, float]:
        """What tells it from others of its name, for the card too; empty where there is only one."""

    def columns(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The columns of L."""

    def sketch(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """L ε, ε independent and ±1."""

    def sampled(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """The score of a label drawn from the model."""

    def observed(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The score of `batch["labels"]`."""


def categorical_factor(logits: Tensor) -> Tensor:
    """A factor L of the softmax likelihood's output Fisher Σ = diag(p) − p pᵀ = L Lᵀ.

    Σ has rank K−1, and its Cholesky factor is known in closed form (Tanabe & Sagae 1992, "An Exact Cholesky
    Decomposition and the Generalized Inverse of the Variance-Covariance Matrix of the Multinomial Distribution"): with
    q_k = 1 − Σ_{i≤k} p_i,

        L_jj = √(p_j q_j / q_{j−1}),   L_kj = −p_k √(p_j / (q_{j−1} q_j)) for k > j.

    Everything is computed from log-probabilities in float64, so that a confident prediction, whose p is 1 to float32's
    rounding, keeps all its digits.

    Args:
        logits: [B, K], K ≥ 2.

    Returns:
        [B, K, K−1] in float64: column j is the gradient that a backward pass starts from, per example.
    """
    log_p, log_diagonal, log_below = _log_factor(logits)
    below = -torch.exp(log_p[:, :, None] + log_below[:, None, :])
    factor = torch.tril(below, diagonal=-1)
    factor.diagonal(dim1=1, dim2=2).copy_(log_diagonal.exp())
    return factor


def _log_factor(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p [..., K], log L_jj [..., K−1], and log(−L_kj / p_k) [..., K−1], which is the same for all k > j."""
    log_p = torch.log_softmax(logits.double(), dim=-1)
    # log q_{j-1} for every j: the sum of the tail p_j, …, p_{K-1}, without subtracting from 1.
    log_tail = log_p.flip(-1).logcumsumexp(-1).flip(-1)
    log_p_j, log_q_before, log_q = log_p[..., :-1], log_tail[..., :-1], log_tail[..., 1:]
    return log_p, (log_p_j + log_q - log_q_before) / 2, (log_p_j - log_q_before - log_q) / 2


def _categorical_sketch(logits: Tensor, draws: Draws) -> Tensor:
    """L ε per row of logits [..., K], without forming L: (L ε)_k = L_kk ε_k − p_k Σ_{j<k} ε_j |L_kj| / p_k."""
    log_p, log_diagonal, log_below = _log_factor(logits)
    ε = draws.signs(log_diagonal.shape).to(log_diagonal)
    before = torch.nn.functional.pad((ε * log_below.exp()).cumsum(-1), (1, 0))
    on_diagonal = torch.nn.functional.pad(ε * log_diagonal.exp(), (0, 1))
    return (on_diagonal - log_p.exp() * before).to(logits.dtype)


def _categorical_sample(logits: Tensor, draws: Draws) -> Tensor:
    """Labels [...] drawn from the softmax of logits [..., K]."""
    cumulative = torch.softmax(logits.double(), -1).cumsum(-1)
    drawn = draws.uniform(logits.shape[:-1]).to(cumulative) * cumulative[..., -1]
    return torch.searchsorted(cumulative, drawn[..., None], right=True)[..., 0].clamp_max(logits.shape[-1] - 1)


def _categorical_score(logits: Tensor, labels: Tensor) -> Tensor:
    """∇_z log softmax(z)_y: one-hot(y) − p."""
    p = torch.softmax(logits.double(), -1)
    return (torch.nn.functional.one_hot(labels, logits.shape[-1]) - p).to(logits.dtype)


@dataclass(frozen=True)
class Categorical:
    """One label per example: logits [B, K]."""

    name = "categorical"
    parameters = NO_PARAMETERS

    def columns(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        _expect(logits, 2, "[examples, classes]")
        yield from categorical_factor(logits).to(logits.dtype).unbind(-1)

    def sketch(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        _expect(logits, 2, "[examples, classes]")
        return _categorical_sketch(logits, draws)

    def sampled(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        _expect(logits, 2, "[examples, classes]")
        return _categorical_score(logits, _categorical_sample(logits, draws))

    def observed(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        _expect(logits, 2, "[examples, classes]")
        return _categorical_score(logits, _labels(batch))


@dataclass(frozen=True)
class Bernoulli:
    """Independent yes-or-no labels (multi-label classification): logits [B, K], Σ = diag(p (1 − p))."""

    name = "bernoulli"
    parameters = NO_PARAMETERS

    def columns(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        _expect(logits, 2, "[examples, labels]")
        yield from torch.diag_embed(self._deviation(logits)).to(logits.dtype).unbind(-1)

    def sketch(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        deviation = self._deviation(logits)
        return (deviation * draws.signs(deviation.shape).to(deviation)).to(logits.dtype)

    def sampled(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        p = torch.sigmoid(logits.double())
        return ((draws.uniform(p.shape).to(p) < p).to(p) - p).to(logits.dtype)

    def observed(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return (_labels(batch) - torch.sigmoid(logits.double())).to(logits.dtype)

    @staticmethod
    def _deviation(logits: Tensor) -> Tensor:
        """√(p (1 − p)), with its digits also where p is 0 or 1 to rounding."""
        z = logits.double()
        return torch.exp((torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)) / 2)


@dataclass(frozen=True)
class Gaussian:
    """Regression: outputs [B, K] are the means of independent Gaussians with one variance v, Σ = I / v.

    Attributes:
        variance: v, in the square of the targets' unit.

    Raises:
        CurvatureError: on construction, the variance is not positive and finite.
    """

    variance: float = 1.0
    name = "gaussian"

    def __post_init__(self) -> None:
        if not (self.variance > 0 and math.isfinite(self.variance)):
            raise CurvatureError(f"variance = {self.variance}: must be positive and finite")

    @property
    def parameters(self) -> Mapping[str, float]:
        """The variance."""
        return {"variance": self.variance}

    def columns(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        _expect(logits, 2, "[examples, outputs]")
        yield from torch.diag_embed(torch.full_like(logits, self.variance**-0.5)).unbind(-1)

    def sketch(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        return draws.signs(logits.shape).to(logits) * self.variance**-0.5

    def sampled(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        return draws.normal(logits.shape).to(logits) * self.variance**-0.5

    def observed(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        residual = _labels(batch).reshape(logits.shape) - logits.double()
        return (residual / self.variance).to(logits.dtype)


@dataclass(frozen=True)
class TokenCategorical:
    """A label per position: logits [B, T, K]. The log-likelihood of a sequence is the SUM over its positions.

    The positions that count are those whose `labels` are not −100, or without labels those of the `attention_mask`
    (the decoder's, if there is one), or all of them.

    With `shift`, position t predicts label t + 1, as causal language models do. It counts where label t + 1 does and t
    itself is no padding: padding to the left of a text does not predict its first token. Nor does the end of a text
    predict the next one's beginning, where several are packed into one row and `position_ids` start anew.
    """

    shift: bool = False
    parameters = NO_PARAMETERS

    @property
    def name(self) -> str:
        """`causal` with `shift`, else `token`."""
        return "causal" if self.shift else "token"

    def columns(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        counted = self._counted(logits, batch)
        positions = int(counted.any(0).sum())
        count = positions * (logits.shape[-1] - 1)
        if count > MOST_TOKEN_COLUMNS:
            raise CurvatureError(
                f"the exact Fisher of {positions} positions with {logits.shape[-1]} labels each takes {count} backward "
                f"passes; use estimator='sketch' (one pass, unbiased)"
            )
        for position in counted.any(0).nonzero()[:, 0].tolist():
            factor = categorical_factor(logits[:, position]) * counted[:, position, None, None]
            for column in factor.to(logits.dtype).unbind(-1):
                vector = torch.zeros_like(logits)
                vector[:, position] = column
                yield vector

    def sketch(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        counted = self._counted(logits, batch)
        return _categorical_sketch(logits, self._of_texts(draws, logits, batch)) * counted[..., None]

    def sampled(self, logits: Tensor, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        counted = self._counted(logits, batch)
        labels = _categorical_sample(logits, self._of_texts(draws, logits, batch))
        return _categorical_score(logits, labels) * counted[..., None]

    def observed(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        counted = self._counted(logits, batch)
        labels = _labels(batch)
        if self.shift:
            labels = torch.nn.functional.pad(labels[:, 1:], (0, 1))
        return _categorical_score(logits, labels.clamp_min(0)) * counted[..., None]

    def _counted(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, T]: whether the position's output counts."""
        _expect(logits, 3, "[examples, positions, classes]")
        real = _no_padding(logits, batch)
        counted = _labels_of(logits, batch) != -100 if "labels" in batch else real
        if not self.shift:
            return counted
        follows = counted[:, 1:] & real[:, :-1]
        if (position_ids := batch.get("position_ids")) is not None and position_ids.shape[1:] == counted.shape[1:]:
            follows = follows & (position_ids[:, 1:] > position_ids[:, :-1]).to(follows.device)
        return torch.nn.functional.pad(follows, (0, 1))

    @staticmethod
    def _of_texts(draws: Draws, logits: Tensor, batch: Mapping[str, Tensor]) -> Draws:
        """The draws that belong to texts wherever these begin: padding on the left moves them along."""
        return draws.starting_at(_no_padding(logits, batch).int().argmax(1).tolist())


def _expect(logits: Tensor, dimensions: int, shape: str) -> None:
    if logits.ndim != dimensions:
        raise CurvatureError(f"the model's outputs have shape {list(logits.shape)}; this likelihood needs {shape}")


def _labels(batch: Mapping[str, Tensor]) -> Tensor:
    if "labels" not in batch:
        raise CurvatureError("estimator='empirical' needs `labels` in every batch")
    return batch["labels"]


def _labels_of(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The labels [B, T] of logits [B, T, K]."""
    labels = batch["labels"]
    if labels.shape != logits.shape[:2]:
        raise CurvatureError(
            f"the model's outputs have shape {list(logits.shape)} and `labels` {list(labels.shape)}; give a label for "
            "every position of the outputs, −100 where there is none"
        )
    return labels.to(logits.device)


def _no_padding(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """[B, T]: which positions of logits [B, T, K] are no padding, as far as the batch says."""
    if "output_positions" in batch:
        mask = batch["output_positions"] >= 0
    else:
        name = "decoder_attention_mask" if "decoder_input_ids" in batch else "attention_mask"
        mask = batch.get(name, torch.ones(logits.shape[:2]))
        if mask.shape != logits.shape[:2]:
            if "labels" not in batch:
                raise CurvatureError(
                    f"the model's outputs have shape {list(logits.shape)} and `{name}` {list(mask.shape)}, so that it "
                    "cannot be told which are padding; give `labels`, one per position of the outputs, −100 for none"
                )
            mask = torch.ones(logits.shape[:2])
    return mask.to(logits.device).bool()
