"""Gradients by autograd, one example and one vector at a time: slow, and right for any use of a parameter."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stages.curvature.batches import batch_size, model_outputs, rows_of


def add_by_autograd(
    model: nn.Module, batch: Mapping[str, Tensor], sums: Mapping[str, Tensor], vectors: Sequence[Tensor]
) -> None:
    """Add the squared gradients of every example on its own.

    Args:
        model: its parameters do not require gradients.
        batch: dict of batch-first tensors.
        sums: parameter name → where Σ_b Σ_vectors (Jᵀ vector_b)² is added.
        vectors: of the outputs' shape, at which backward passes start.
    """
    with differentiable(model, sums) as parameters:
        for b in range(batch_size(batch)):
            outputs = model_outputs(model, rows_of(batch, b, b + 1))
            for position, vector in enumerate(vectors):
                last = position == len(vectors) - 1
                # Nothing here holds on to one vector's gradients while the next one's are computed.
                _add_squares(sums, gradients_at(outputs, parameters, vector[b : b + 1], last))


@contextmanager
def differentiable(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, nn.Parameter]]:
    """The named parameters, which require gradients inside the context, and neither before nor after it.

    Inside, embeddings have sparse gradients: one example uses few rows of a large table.
    """
    parameters = {name: model.get_parameter(name) for name in names}
    embeddings = [module for module in model.modules() if type(module) is nn.Embedding and not module.sparse]
    try:
        for embedding in embeddings:
            embedding.sparse = True
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        for embedding in embeddings:
            embedding.sparse = False


def gradients_at(
    outputs: Tensor, parameters: Mapping[str, nn.Parameter], vector: Tensor, last: bool
) -> dict[str, Tensor]:
    """The gradients Jᵀ `vector`, in float32, of those parameters that have one; `last` frees the outputs' graph."""
    gradients = torch.autograd.grad(
        outputs, list(parameters.values()), vector, retain_graph=not last, allow_unused=True
    )
    return {
        name: gradient.float() for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    }


def _add_squares(sums: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        add_square(sums[name], gradient)


def add_square(total: Tensor, gradient: Tensor, factor: float = 1.0) -> None:
    """Add factor · gradient² to `total`."""
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        total.index_add_(0, gradient.indices()[0], gradient.values().square(), alpha=factor)
    else:
        total.addcmul_(gradient, gradient, value=factor)


def warn_of_slowness(names: Collection[str]) -> None:
    """Say that these parameters are left to autograd."""
    warnings.warn(
        f"{len(names)} parameters are not used in the usual way (first: {min(names)}); their Fisher is exact, but is "
        "computed one example at a time, which is slow",
        stacklevel=4,  # where `Estimation.add` is called
    )
