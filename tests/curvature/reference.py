"""An independent Fisher: float64, one example at a time, written from the definitions."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn

# From one example's outputs (and its batch entry): pairs of the probability of an outcome and its log-likelihood.
Outcomes = Callable[[Tensor, Mapping[str, Tensor]], list[tuple[float, Tensor]]]


def categorical(z: Tensor, _: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    return [(float(log_p.detach().exp()), log_p) for log_p in torch.log_softmax(z, -1)]


def bernoulli(z: Tensor, _: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """Every combination of labels: 2^K outcomes."""
    outcomes = []
    for y in product((0.0, 1.0), repeat=len(z)):
        log_p = torch.distributions.Bernoulli(logits=z).log_prob(torch.tensor(y).to(z)).sum()
        outcomes.append((float(log_p.detach().exp()), log_p))
    return outcomes


def gaussian(z: Tensor, _: Mapping[str, Tensor], variance: float = 1.0) -> list[tuple[float, Tensor]]:
    """Two nodes of Gauss–Hermite quadrature per output: exact, since the squared score is quadratic in y."""
    outcomes = []
    for signs in product((-1.0, 1.0), repeat=len(z)):
        y = z.detach() + torch.tensor(signs).to(z) * variance**0.5
        outcomes.append((0.5 ** len(z), -((y - z) ** 2).sum() / (2 * variance)))
    return outcomes


def tokens(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """Every combination of labels at the positions that count: the sum of their log-probabilities."""
    log_p = torch.log_softmax(z, -1)
    positions = batch["labels"][0].ne(-100).nonzero()[:, 0].tolist()
    outcomes = []
    for y in product(range(z.shape[-1]), repeat=len(positions)):
        total = sum((log_p[t, k] for t, k in zip(positions, y, strict=True)), start=torch.zeros((), dtype=z.dtype))
        outcomes.append((math.exp(float(total.detach())), total))
    return outcomes


def reference_fisher(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], outcomes: Outcomes = categorical
) -> dict[str, Tensor]:
    """E_y[(∇ log p(y|x))²], averaged over examples. The model is changed to float64, in eval mode."""
    model = model.double().eval()
    parameters = {name: parameter.requires_grad_(True) for name, parameter in model.named_parameters()}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    examples = 0
    for batch in batches:
        for row in range(len(next(iter(batch.values())))):
            one = {key: _double(value[row : row + 1]) for key, value in batch.items()}
            outputs = model(**{key: value for key, value in one.items() if key != "labels"})
            z = (outputs if isinstance(outputs, Tensor) else outputs.logits)[0]
            for probability, log_p in outcomes(z, one):
                gradients = torch.autograd.grad(log_p, list(parameters.values()), retain_graph=True, allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        total[name] += probability * gradient**2
            examples += 1
    return {name: value / examples for name, value in total.items()}


def assert_same_fisher(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Relative error in norm per tensor; a tensor whose Fisher is zero (BERT's key biases) against the model's mean."""
    assert found.keys() == wanted.keys()
    mean = float(torch.cat([value.flatten() for value in wanted.values()]).mean())
    for name, value in wanted.items():
        assert found[name].dtype == torch.float32
        assert found[name].shape == value.shape
        if float(value.max()) < 1e-12 * mean:
            assert float(found[name].max()) < 1e-7 * mean, name
        else:
            error = float((found[name].double() - value).norm() / value.norm())
            assert error < tolerance, f"{name}: relative error {error:.1e}"


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
