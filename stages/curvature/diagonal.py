"""The diagonal of the Fisher information: exact to rounding on any model that keeps its examples apart."""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stages.curvature.capture import Capture
from stages.curvature.likelihoods import LIKELIHOODS, Likelihood

Estimator = Literal["exact", "sketch", "sampled", "empirical"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

CHECKED_EXAMPLES = 2  # of the first batch, on which the hooks are compared with autograd
CHECK_TOLERANCE = 1e-3  # relative; rounding is a thousand times smaller, a missed use of a parameter is not small

Vectors = Callable[[Tensor, Mapping[str, Tensor]], list[Tensor]]


class UnsupportedModelError(ValueError):
    """No exact Fisher can be had from the model; the message names the part that stands in the way."""


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    likelihood: str = "categorical",
    estimator: Estimator = "exact",
    samples: int = 1,
    parameters: Collection[str] | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Tensor]:
    """The mean over examples of diag F(x) = E_{y∼p(y|x)} [∇ log p(y|x)]² (Matena & Raffel 2022, eq. 3 and 4).

    With z the model's outputs, J = ∂z/∂θ and Σ = L Lᵀ the likelihood's Fisher of the outputs, diag F is Σ_j (Jᵀ L_j)²
    over L's columns: one backward pass each, through one shared forward pass. For K classes there are K−1. What is
    squared is every example's own gradient, never a batch's mean.

    Hooks on the modules that own parameters turn their inputs and output gradients into squares. On two examples of
    the first batch this is compared with autograd, one example at a time: a parameter for which they differ (it is used
    outside its module's call, say) is from then on differentiated by autograd, one example at a time: slow, exact, and
    announced by a warning.

    Args:
        model: called as `model(**batch)`; returns logits or an object with `.logits`. It is run in eval mode. Its
            mode, gradients, `requires_grad` flags and hooks are as before on return, also after an exception.
        batches: dicts of batch-first tensors. `labels` are not shown to the model; only `empirical` and token-level
            likelihoods look at them. No batch may be empty.
        likelihood: `categorical` (logits [B, K]), `bernoulli` ([B, K], multi-label), `gaussian` ([B, K], variance 1),
            `token` and `causal` ([B, T, K], summed over positions; in `causal`, position t predicts label t + 1).
        estimator: see `stages.curvature.likelihoods`.
        samples: draws per example, for `sketch` and `sampled`; one backward pass each.
        parameters: names to restrict to; all parameters without it.
        seed: of the draws.
        progress: called after each batch with the number of its examples.

    Returns:
        Parameter name (as in `model.state_dict()`, a shared one once) → float32 tensor of its shape, on its device.

    Raises:
        UnsupportedModelError: the model mixes its examples (an output depends on the other examples of the batch).
        ValueError: unknown likelihood, estimator or parameter names, outputs of another shape than the likelihood's, an
            exact token-level Fisher of too many outputs, or no examples.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {likelihood!r}; known: {', '.join(sorted(LIKELIHOODS))}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
    if samples < 1:
        raise ValueError(f"samples = {samples}: must be at least 1")
    vectors = _vectors(LIKELIHOODS[likelihood], estimator, samples, seed)
    sums = {
        name: torch.zeros_like(parameter, dtype=torch.float32)
        for name, parameter in _selected(model, parameters).items()
    }
    examples = 0
    expand, slow = True, set[str]()
    with _frozen_in_eval_mode(model):
        for batch in batches:
            if examples == 0:
                # The check's vectors are drawn apart, so that it changes no result.
                check_vectors = _vectors(LIKELIHOODS[likelihood], estimator, 1, seed)
                expand, slow = _check(model, _rows(batch, slice(0, CHECKED_EXAMPLES)), sums, check_vectors)
            fast_sums = {name: total for name, total in sums.items() if name not in slow}
            chosen = _add_by_hooks(model, batch, fast_sums, vectors, expand)
            if slow:
                _add_by_loop(model, batch, {name: sums[name] for name in slow}, chosen)
            examples += _size(batch)
            if progress is not None:
                progress(_size(batch))
    if examples == 0:
        raise ValueError("there are no examples to estimate a Fisher from")
    return {name: total.div_(examples) for name, total in sums.items()}


def _vectors(likelihood: Likelihood, estimator: Estimator, samples: int, seed: int) -> Vectors:
    """From a batch's logits to the vectors whose backward passes' squares are summed."""
    generator = torch.Generator().manual_seed(seed)
    match estimator:
        case "exact":
            return lambda logits, batch: list(likelihood.columns(logits, batch))
        case "sketch":
            draw = likelihood.sketch
        case "sampled":
            draw = likelihood.sampled
        case "empirical":
            return lambda logits, batch: [likelihood.observed(logits, batch)]
    scale = samples**-0.5  # the squares of the draws are averaged
    return lambda logits, batch: [draw(logits, batch, generator) * scale for _ in range(samples)]


def _selected(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    owned = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if names is None:
        return owned
    if unknown := sorted(set(names) - owned.keys()):
        raise ValueError(f"the model has no parameter {unknown[0]!r}")
    return {name: parameter for name, parameter in owned.items() if name in names}


@contextmanager
def _frozen_in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside the block; everything as it was after it."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _add_by_hooks(
    model: nn.Module, batch: Mapping[str, Tensor], sums: Mapping[str, Tensor], vectors: Vectors, expand: bool
) -> list[Tensor]:
    """Add the batch's sums of squared gradients, and return the vectors they were taken for."""
    with Capture(model, sums, _size(batch), expand) as capture:
        logits = _logits(model, batch)
        with torch.no_grad():
            chosen = vectors(logits.detach(), batch)
        for position, vector in enumerate(chosen):
            capture.backward(logits, vector, last=position == len(chosen) - 1)
    return chosen


def _add_by_loop(
    model: nn.Module, batch: Mapping[str, Tensor], sums: Mapping[str, Tensor], chosen: list[Tensor]
) -> Tensor:
    """The same by autograd, one example at a time. Returns the examples' logits."""
    own = {name: model.get_parameter(name) for name in sums}
    rows = []
    try:
        for parameter in own.values():
            parameter.requires_grad_(True)
        for b in range(_size(batch)):
            logits = _logits(model, _rows(batch, slice(b, b + 1)))
            rows.append(logits.detach())
            for vector in chosen:
                gradients = torch.autograd.grad(
                    logits, list(own.values()), vector[b : b + 1], retain_graph=True, allow_unused=True
                )
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    if gradient is not None:
                        total.addcmul_(gradient, gradient)
    finally:
        for parameter in own.values():
            parameter.requires_grad_(False)
    return torch.cat(rows)


def _check(
    model: nn.Module, batch: Mapping[str, Tensor], sums: Mapping[str, Tensor], vectors: Vectors
) -> tuple[bool, set[str]]:
    """Compare the hooks with autograd on a small batch.

    Returns:
        Whether results computed once for the whole batch can be expanded, and the parameters that hooks get wrong.

    Raises:
        UnsupportedModelError: an example's outputs depend on the other examples.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise _mixing(f"module {name} ({type(module).__name__} without running statistics)")
    together = _logits(model, batch).detach()
    if not torch.isfinite(together).all():
        raise ValueError("the model's outputs are not finite; its weights or inputs are out of range")
    with torch.no_grad():
        chosen = vectors(together, batch)[:1]  # a use that one vector's pass misses, the others' miss too
    wanted = {name: torch.zeros_like(total) for name, total in sums.items()}
    alone = _add_by_loop(model, batch, wanted, chosen)
    if not torch.allclose(alone, together, rtol=CHECK_TOLERANCE, atol=CHECK_TOLERANCE * float(together.abs().max())):
        raise _mixing(f"the model ({type(model).__name__})")
    scale = max(float(value.max()) for value in wanted.values()) if wanted else 0.0

    def wrong(expand: bool) -> set[str]:
        found = {name: torch.zeros_like(total) for name, total in sums.items()}
        try:
            _add_by_hooks(model, batch, found, lambda *_: chosen, expand)
        except RuntimeError:  # the model cannot live with what the hooks do to its tensors
            return set(sums)
        return {
            name
            for name, value in wanted.items()
            if not float(found[name].sub_(value).norm()) <= CHECK_TOLERANCE * float(value.norm()) + 1e-12 * scale
        }

    expanded = wrong(expand=True)
    if not expanded:
        return True, expanded
    plain = wrong(expand=False)
    expand, slow = (True, expanded) if len(expanded) <= len(plain) else (False, plain)
    warnings.warn(
        f"{len(slow)} parameters are not used in the usual way (first: {min(slow)}); their Fisher is exact, but is "
        "computed one example at a time, which is slow",
        stacklevel=3,
    )
    return expand, slow


def _mixing(culprit: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{culprit} mixes the examples of a batch: an example's outputs depend on the others', so it has no gradient "
        "of its own"
    )


def _logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    outputs = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    if logits.ndim == 0 or len(logits) != _size(batch):
        raise UnsupportedModelError(f"the model's outputs have shape {list(logits.shape)}; axis 0 is not the examples")
    return logits


def _rows(batch: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in batch.items()}


def _size(batch: Mapping[str, Tensor]) -> int:
    return len(next(iter(batch.values())))
