"""Gradients by autograd, one example and one vector at a time: slow, and right for any use of a parameter."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from stages.curvature.batches import Batch, batch_size, model_outputs, rows_of


def add_by_autograd(model: nn.Module, batch: Batch, sums: Mapping[str, Tensor], vectors: Sequence[Tensor]) -> None:
    """Add the squared gradients of every example on its own.

    Args:
        model: its parameters do not require gradients.
        batch: of B examples.
        sums: parameter name → where Σ_b Σ_vectors (Jᵀ vector_b)² is added.
        vectors: of the outputs' shape, at which backward passes start.
    """

    def add(name: str, gradient: Tensor) -> None:
        sums[name].addcmul_(gradient, gradient)

    with differentiable(model, sums) as parameters:
        for b in range(batch_size(batch)):
            outputs = model_outputs(model, rows_of(batch, b, b + 1))
            for position, vector in enumerate(vectors):
                last = position == len(vectors) - 1
                receive_gradients(outputs, parameters, vector[b : b + 1], add, last)


@contextmanager
def differentiable(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, nn.Parameter]]:
    """The named parameters, which require gradients inside the context, and neither before nor after it.

    Gradients that its caller has left at them are put aside inside it.
    """
    parameters = {name: model.get_parameter(name) for name in names}
    before = {name: parameter.grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.grad = None
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(False)
            parameter.grad = before[name]


def receive_gradients(
    outputs: Tensor,
    parameters: Mapping[str, nn.Parameter],
    vector: Tensor,
    receive: Callable[[str, Tensor], None],
    last: bool,
) -> None:
    """Hand each parameter's gradient Jᵀ `vector` over as soon as it is there, in float32 or float64, and forget it.

    Args:
        outputs: of the model.
        parameters: which require gradients and have none yet; those that the outputs do not depend on are left out.
        vector: of the outputs' shape.
        receive: called with a parameter's name and gradient.
        last: whether the outputs' graph may go.
    """
    if not outputs.requires_grad:  # they depend on none of the parameters
        return

    def hand_over(name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        receive(name, gradient.to(torch.promote_types(gradient.dtype, torch.float32)))

    handles = [
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: hand_over(name, p))
        for name, parameter in parameters.items()
    ]
    try:
        torch.autograd.backward(outputs, vector, retain_graph=not last, inputs=list(parameters.values()))
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.grad = None


@contextmanager
def watched(model: nn.Module, names: Collection[str]) -> Iterator[set[str]]:
    """Inside this context, those of the named parameters at which a gradient arrives are added to the set."""
    arrived = set[str]()

    def look(name: str, parameter: Tensor) -> None:
        if parameter.grad is not None and bool((parameter.grad.to_dense() != 0).any()):
            arrived.add(name)
        parameter.grad = None

    with differentiable(model, names) as parameters, ExitStack() as hooks:
        for name, parameter in parameters.items():
            handle = parameter.register_post_accumulate_grad_hook(lambda p, name=name: look(name, p))
            hooks.callback(handle.remove)
        yield arrived


def warn_of_slowness(names: Collection[str]) -> None:
    """Say that these parameters are left to autograd."""
    warnings.warn(
        f"{len(names)} parameters are not used in the usual way (first: {min(names)}); their Fisher is exact, but is "
        "computed one example at a time, which is slow",
        stacklevel=4,  # where `Estimation.add` is called
    )
