"""The diagonal of the Fisher information, and K-FAC factors, of a model in one call."""

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor, nn
from tqdm.auto import tqdm

from stages.curvature.accumulators import Accumulator
from stages.curvature.batches import Batch, batch_size
from stages.curvature.estimation import DIAGONAL, CurvatureStatistics, Estimation
from stages.curvature.likelihoods import Categorical, Likelihood
from stages.curvature.vectors import BackwardVectors, Estimator

CATEGORICAL = Categorical()


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    likelihood: Likelihood = CATEGORICAL,
    estimator: Estimator = "exact",
    samples: int = 1,
    parameters: Collection[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The mean over examples of diag F(x) = E_{y∼p(y|x)} [∇ log p(y|x)]² (Matena & Raffel 2022, eq. 3 and 4).

    With z the model's outputs, J = ∂z/∂θ and Σ = L Lᵀ the likelihood's Fisher of the outputs, diag F is Σ_j (Jᵀ L_j)²
    over L's columns: one backward pass each, through one shared forward pass. For K classes there are K−1. What is
    squared is every example's own gradient, never a batch's mean.

    Hooks on the modules that own parameters turn their inputs and output gradients into squares. On examples of the
    first batch this is compared with autograd in float64. A parameter for which they differ (it is used outside its
    module's call, say) is differentiated in a larger module or, where there is none, by autograd, one example at a
    time: slow, exact, and announced by a warning.

    Inside `torch.autocast` the passes run in its type; squares are summed in float32 all the same.

    Args:
        model: called as `model(**batch)`; returns logits or an object with `.logits`. It is run in eval mode and, as in
            training, without a cache of keys and values (transformers' `config.use_cache`). Its mode, settings,
            gradients, `requires_grad` flags and hooks are as before on return, also after an exception.
        batches: dicts of batch-first tensors, and of what is the same for all examples (a tensor [1, …], a setting).
            `labels` are not shown to the model; only `empirical` and token-level likelihoods look at them. No batch
            may be empty.
        likelihood: what the outputs mean: `Categorical()` (logits [B, K]), `Bernoulli()` ([B, K], multi-label),
            `Gaussian(variance)` ([B, K]), `TokenCategorical()` ([B, T, K], summed over positions; with `shift`,
            position t predicts label t + 1), or one of your own.
        estimator: see `stages.curvature.likelihoods`.
        samples: draws per example, for `sketch` and `sampled`; one backward pass each.
        parameters: names to restrict to; all parameters without it.
        seed: of the draws; they belong to the examples' numbers, whatever batches these come in.
        progress: show a progress bar, if standard error is a terminal.

    Returns:
        Parameter name (as in `model.state_dict()`, a shared one once) → float32 tensor of its shape, on its device.

    Raises:
        UnsupportedModelError: the model mixes its examples (an output depends on the other examples of the batch).
        ValueError: unknown estimator or parameter names, outputs of another shape than the likelihood's, an
            exact token-level Fisher of too many outputs, or no examples.
    """
    vectors = BackwardVectors(likelihood, estimator, samples, seed)
    return _over_all(batches, Estimation(model, vectors, parameters), progress).diagonal


def curvature_statistics(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    likelihood: Likelihood = CATEGORICAL,
    estimator: Estimator = "exact",
    samples: int = 1,
    parameters: Collection[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    statistics: Collection[str] = DIAGONAL,
    accumulators: Collection[Accumulator] = (),
) -> CurvatureStatistics:
    """Several statistics from one pass over the examples.

    Args and errors are those of `diagonal_fisher`, and:
        statistics: `diagonal`; `kfac`, the factors A and G of every Linear (and transformers' Conv1D) whose weight is
            used by such modules only; `gram`, their A alone, which takes forward passes only.
        accumulators: what else to add up for every such Linear; it is found in `factors`, by the accumulator's name.
    """
    vectors = BackwardVectors(likelihood, estimator, samples, seed)
    return _over_all(batches, Estimation(model, vectors, parameters, statistics, accumulators), progress)


def _over_all(batches: Iterable[Batch], estimation: Estimation, progress: bool) -> CurvatureStatistics:
    total = sum(map(batch_size, batches)) if isinstance(batches, Sequence) else None
    with estimation, tqdm(total=total, unit="example", desc="Fisher", disable=None if progress else True) as bar:
        for batch in batches:
            estimation.add(batch)
            bar.update(batch_size(batch))
        return estimation.result()
