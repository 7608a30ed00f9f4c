"""The diagonal of the Fisher information, per parameter, exact to rounding."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.curvature.likelihoods import categorical_factor
from stages.curvature.rules import RULES, Rule

LIKELIHOODS: dict[str, Callable[[Tensor], Tensor]] = {"categorical": categorical_factor}


class UnsupportedModelError(ValueError):
    """The model has a part for which no exact rule is known; the message names it."""


@dataclass(frozen=True)
class _Layer:
    """A module that owns parameters: its name, its rule, and where its parameters' sums go."""

    name: str
    module: nn.Module
    rule: Rule
    sums: Mapping[str, Tensor]


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    likelihood: str = "categorical",
    parameters: Collection[str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Tensor]:
    """The mean over examples of diag F(x) = E_{y∼p(y|x)} [∇ log p(y|x)]², exactly (Matena & Raffel 2022, eq. 3 and 4).

    With z the model's outputs, J = ∂z/∂θ and Σ = L Lᵀ the likelihood's Fisher of the outputs, diag F is Σ_j (Jᵀ L_j)²
    over L's columns: one backward pass each, through one shared forward pass. For K classes there are K−1. What is
    squared is every example's own gradient, never a batch's mean.

    Args:
        model: called as `model(**batch)`; returns logits [B, K] or an object with `.logits`. It is run in eval mode.
            Its mode, gradients, `requires_grad` flags and hooks are as before on return, also after an exception.
        batches: dicts of batch-first tensors; `labels` is ignored. No batch may be empty.
        likelihood: `categorical`.
        parameters: names to restrict to; all parameters without it.
        progress: called after each batch with the number of its examples.

    Returns:
        Parameter name (as in `model.state_dict()`, a shared one once) → float32 tensor of its shape, on its device.

    Raises:
        UnsupportedModelError: a module owns parameters and has no exact rule, is used more than once, or its output is
            not batch-first.
        ValueError: unknown likelihood or parameter names, or no examples.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {likelihood!r}; known: {', '.join(sorted(LIKELIHOODS))}")
    factor_of = LIKELIHOODS[likelihood]
    owned = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if parameters is not None:
        if unknown := sorted(set(parameters) - owned.keys()):
            raise ValueError(f"the model has no parameter {unknown[0]!r}")
        owned = {name: parameter for name, parameter in owned.items() if name in parameters}
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in owned.items()}
    layers = _layers(model, sums)

    examples = 0
    with _frozen_in_eval_mode(model):
        for batch in batches:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            examples += _accumulate(model, inputs, layers, factor_of)
            if progress is not None:
                progress(len(next(iter(inputs.values()))))
    if examples == 0:
        raise ValueError("there are no examples to estimate a Fisher from")
    return {name: total.div_(examples) for name, total in sums.items()}


def _layers(model: nn.Module, sums: Mapping[str, Tensor]) -> list[_Layer]:
    """The modules that own the parameters in `sums`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers: list[_Layer] = []
    seen: set[str] = set()
    for module_name, module in model.named_modules():
        own = {key: names[id(p)] for key, p in module.named_parameters(recurse=False) if names[id(p)] in sums}
        if not own:
            continue
        if shared := sorted(seen & set(own.values())):
            raise UnsupportedModelError(f"parameter {shared[0]} is shared: {module_name} uses it too")
        seen |= set(own.values())
        if type(module) not in RULES:
            raise UnsupportedModelError(f"module {module_name} ({type(module).__name__}) has no exact Fisher rule")
        layers.append(_Layer(module_name, module, RULES[type(module)], {key: sums[name] for key, name in own.items()}))
    return layers


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


def _accumulate(
    model: nn.Module, inputs: Mapping[str, Tensor], layers: Iterable[_Layer], factor_of: Callable[[Tensor], Tensor]
) -> int:
    """Add a batch's sums of squared gradients to the layers' sums. Returns the number of examples."""
    batch_size = len(next(iter(inputs.values())))
    leaves: list[Tensor] = []  # where the graph begins: the outputs that no earlier layer's output leads to
    with ExitStack() as hooks:
        used: set[str] = set()
        for layer in layers:
            handle = layer.module.register_forward_hook(_forward_hook(layer, batch_size, leaves, used))
            hooks.callback(handle.remove)
        outputs = model(**inputs)
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        if logits.ndim != 2 or len(logits) != batch_size:
            raise UnsupportedModelError(f"the model's logits have shape {tuple(logits.shape)}, not [examples, classes]")
        factor = factor_of(logits.detach()).to(logits.dtype)
        columns = factor.shape[-1]
        for column in range(columns):
            # The layers' sums grow by the hooks on their outputs; the gradients asked for here only start the pass.
            torch.autograd.grad(
                logits, leaves, factor[:, :, column], retain_graph=column < columns - 1, allow_unused=True
            )
    return batch_size


def _forward_hook(
    layer: _Layer, batch_size: int, leaves: list[Tensor], used: set[str]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Keeps the layer's input, and applies its rule whenever a gradient reaches its output."""

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer.name in used:
            raise UnsupportedModelError(f"module {layer.name} is used more than once in a forward pass")
        used.add(layer.name)
        x = arguments[0].detach()
        # A result for one example that is then broadcast (BERT's position embeddings) would receive the gradient summed
        # over the batch: hand every example its own copy.
        if output.shape[0] == 1 and batch_size > 1:
            output = output.expand(batch_size, *output.shape[1:])
            x = x.expand(batch_size, *x.shape[1:])
        if output.shape[0] != batch_size or x.shape[0] != batch_size:
            raise UnsupportedModelError(
                f"module {layer.name} maps {tuple(x.shape)} to {tuple(output.shape)}: axis 0 is not the examples"
            )
        if not output.requires_grad:
            output = output.detach().requires_grad_()
            leaves.append(output)
        output.register_hook(lambda g: layer.rule(module, x, g, layer.sums))
        return output

    return hook
