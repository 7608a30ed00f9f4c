"""Observing a forward pass: the calls of modules that own parameters, and the gradients at their outputs."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stages.curvature.rules import Call, Rule, rule_for


class Capture:
    """Adds squared per-example gradients to `sums` while backward passes go through a model.

    Inside the context, call the model once on a batch of `examples`, then for each output vector `backward`.

    Args:
        model: its parameters must not require gradients.
        sums: parameter name → accumulator; other parameters are left out.
        examples: the batch's size.
        expand: hand every example its own copy of a result that a module computes once for the whole batch (BERT's
            position embeddings); otherwise the gradient at such a result is a sum over the batch, and not usable.
    """

    def __init__(self, model: nn.Module, sums: Mapping[str, Tensor], examples: int, expand: bool) -> None:
        self._sums = sums
        self._examples = examples
        self._expand = expand
        self._paused = False
        self._leaves: list[Tensor] = []  # outputs that no earlier observed output leads to: there the graph begins
        self._uses: Counter[str] = Counter()
        self._deferred: defaultdict[str, list[tuple[Rule, Call, Tensor, str]]] = defaultdict(list)
        self._modules = owners(model, sums)
        self._hooks = ExitStack()

    def __enter__(self) -> "Capture":
        for module, names in self._modules.items():
            handle = module.register_forward_hook(self._hook(names), with_kwargs=True)
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def backward(self, outputs: Tensor, vector: Tensor, last: bool) -> None:
        """One backward pass from `vector` at the model's outputs; adds its squares to the sums."""
        if self._leaves:
            torch.autograd.grad(outputs, self._leaves, vector, retain_graph=not last, allow_unused=True)
        for name, uses in self._deferred.items():
            for b in range(self._examples):
                gradient = torch.zeros_like(self._sums[name])
                for rule, call, g, key in uses:
                    gradient += rule.example(call, g, key, b)
                self._sums[name].addcmul_(gradient, gradient)
        self._deferred.clear()

    def _hook(self, names: Mapping[str, str]) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            if self._paused or not isinstance(output, Tensor):
                return None
            if self._expand and len(output) == 1 and self._examples > 1:
                output = output.expand(self._examples, *output.shape[1:])
            if len(output) != self._examples:
                return None
            if not output.requires_grad:
                output = output.detach().requires_grad_()
                self._leaves.append(output)
            self._uses.update(names.values())
            call = Call(
                module,
                tuple(_detached(value) for value in arguments),
                {key: _detached(value) for key, value in keywords.items()},
                self._examples,
                _Replay(self),
            )
            output.register_hook(lambda g: self._receive(call, names, g))
            return output

        return hook

    def _receive(self, call: Call, names: Mapping[str, str], g: Tensor) -> None:
        """The gradient at a call's output has arrived."""
        rule = rule_for(call.module)
        # By now the forward pass is over, so it is known which parameters are used more than once.
        once = {key: self._sums[name] for key, name in names.items() if self._uses[name] == 1}
        with torch.no_grad():
            if once:
                rule.squares(call, g.detach(), once)
        for key, name in names.items():
            if key not in once:
                self._deferred[name].append((rule, call, g.detach(), key))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls inside are not observed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before


class _Replay(AbstractContextManager[None]):
    """`capture.paused()`, as often as wanted."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self._entered.append(self._capture.paused())
        self._entered[-1].__enter__()

    def __exit__(self, *details: Any) -> None:
        self._entered.pop().__exit__(*details)


def owners(model: nn.Module, names: Mapping[str, object]) -> dict[nn.Module, dict[str, str]]:
    """The modules that own the named parameters directly: module → its name of the parameter → the model's.

    A parameter that several modules share has one name in the model and several owners.
    """
    model_name = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for module in model.modules():
        own = {
            key: model_name[id(parameter)]
            for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if model_name[id(parameter)] in names
        }
        if own:
            found[module] = own
    return found


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
