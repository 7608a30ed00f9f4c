"""Observing a forward pass: the calls of modules that own parameters, and the gradients at their outputs."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stages.curvature.rules import Call, Linear, Rule, positions, rule_for
from stages.curvature.squares import active_ranges, add_squared_products
from stages.curvature.sums import Sums

Owners = Mapping[nn.Module, dict[str, str]]  # module → its name of a parameter → the model's


class Capture:
    """Adds a batch to `sums` while the model is called on it and backward passes go through it.

    Inside the context, call the model once on a batch of `examples`, then for each output vector `backward`.

    Args:
        observed: modules and the parameters they own, which must not require gradients; see `owners`.
        sums: what is wanted, and where it is added; the number of examples is left to the caller.
        examples: the batch's size.
        masks: [B, T] each, which positions are no padding; an input [B, T, …] is added up where its mask says so.
        expand: hand every example its own copy of a result that a module computes once for the whole batch (BERT's
            position embeddings); otherwise the gradient at such a result is a sum over the batch, and not usable.

    Attributes:
        not_by_example: parameters whose module gave something else, once at least, than a tensor with an entry for
            every example: their gradients cannot be had from here.
        arrived: parameters that were left out of the diagonal although there is a gradient at their module's output.
    """

    def __init__(
        self, observed: Owners, sums: Sums, examples: int, masks: Sequence[Tensor] = (), expand: bool = True
    ) -> None:
        self._sums = sums
        self._examples = examples
        self._masks = masks
        self._expand = expand
        self._paused = False
        self._leaves: list[Tensor] = []  # outputs that no earlier observed output leads to: there the graph begins
        self._uses: Counter[str] = Counter()
        self._deferred: defaultdict[str, list[tuple[Rule, Call, Tensor, str]]] = defaultdict(list)
        self._observed = observed
        self._hooks = ExitStack()
        self._left_out: set[str] = set()
        self.not_by_example: set[str] = set()
        self.arrived: set[str] = set()

    def __enter__(self) -> "Capture":
        for module, names in self._observed.items():
            handle = module.register_forward_hook(self._hook(names), with_kwargs=True)
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def leave_out(self, names: Collection[str]) -> None:
        """From now on add nothing to the diagonal of these parameters."""
        self._left_out.update(names)

    def backward(self, outputs: Tensor, vector: Tensor, last: bool) -> None:
        """One backward pass from `vector` at the model's outputs; adds what comes by to the sums."""
        if self._leaves:
            torch.autograd.grad(outputs, self._leaves, vector, retain_graph=not last, allow_unused=True)
        for name, uses in self._deferred.items():
            with torch.no_grad(), _full_precision(outputs):
                self._add_uses(self._sums.diagonal[name], uses)
        self._deferred.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls inside are not observed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _hook(self, names: dict[str, str]) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            if self._paused:
                return None
            if not isinstance(output, Tensor):
                self.not_by_example.update(names.values())
                return None
            call = Call(
                module,
                tuple(_detached(value) for value in arguments),
                {key: _detached(value) for key, value in keywords.items()},
                self._examples,
                self.paused,
            )
            if names.get("weight") in self._sums.inputs:
                self._add_input(call, names["weight"])
            if not torch.is_grad_enabled():
                return None
            if self._expand and len(output) == 1 and self._examples > 1:
                output = output.expand(self._examples, *output.shape[1:])
            if len(output) != self._examples:
                self.not_by_example.update(names.values())
                return None
            if not output.requires_grad:
                output = output.detach().requires_grad_()
                self._leaves.append(output)
            self._uses.update(names.values())
            rule, x = rule_for(module), arguments[0] if arguments else None
            if isinstance(rule, Linear) and isinstance(x, Tensor) and x.requires_grad and len(x) == self._examples:
                return _LinearOutput.apply(x, output.detach(), self, rule, call, names)
            output.register_hook(lambda g: self._receive(rule, call, names, g.detach()))
            return output

        return hook

    def _add_input(self, call: Call, name: str) -> None:
        """x is known as soon as the module is called."""
        with torch.no_grad(), _full_precision(call.x):
            x = call.x.float()
            masks = [mask for mask in self._masks if mask.shape == x.shape[:-1]]
            if len(masks) > 1 and not torch.equal(masks[0], masks[1]):
                raise ValueError(
                    "encoder and decoder inputs are padded to one length, so that padding cannot be told from the "
                    "shapes of activations; pad the decoder's by one position more"
                )
            x = x[masks[0].bool()] if masks else x.reshape(-1, x.shape[-1])
            self._sums.inputs[name].addmm_(x.t(), x)
            self._sums.positions[name].add_(len(x))

    def _receive(self, rule: Rule, call: Call, names: dict[str, str], g: Tensor) -> None:
        """The gradient at a call's output has arrived."""
        once: dict[str, Tensor] = {}
        for key, name in names.items():
            # By now the forward pass is over, so it is known which parameters are used more than once.
            if name not in self._sums.diagonal:
                continue
            if name in self._left_out:
                if name not in self.arrived and bool(g.any()):
                    self.arrived.add(name)
            elif self._uses[name] == 1:
                once[key] = self._sums.diagonal[name]
            else:
                self._deferred[name].append((rule, call, g, key))
        with torch.no_grad(), _full_precision(g):
            if once:
                rule.squares(call, g, once)
            if names.get("weight") in self._sums.outputs:
                rows = positions(g).reshape(-1, g.shape[-1]).float()
                self._sums.outputs[names["weight"]].addmm_(rows.t(), rows)

    def _add_uses(self, total: Tensor, uses: list[tuple[Rule, Call, Tensor, str]]) -> None:
        """Square the sums over a parameter's uses."""
        if all(isinstance(rule, Linear) and key == "weight" for rule, _, _, key in uses):
            # A sum of products over positions: the uses are more positions.
            sides = [rule.sides(call, g) for rule, call, g, _ in uses if isinstance(rule, Linear)]
            left, right = (torch.cat([side[i] for side in sides], dim=1) for i in (0, 1))
            add_squared_products(total, left, right, None)
            return
        for b in range(self._examples):
            gradient = torch.zeros_like(total)
            for rule, call, g, key in uses:
                gradient += rule.example(call, g, key, b)
            total.addcmul_(gradient, gradient)


class _LinearOutput(torch.autograd.Function):
    """A Linear's output, handed on; its backward pass leaves out the positions that have no gradient.

    Behind a pooler of the first position, that is nearly all of them, up to the attention before it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, output: Tensor, capture: Capture, rule: Linear, call: Call, names: dict[str, str]
    ) -> Tensor:
        ctx.mark_dirty(output)  # returned as it is: not a view, which the model could not write into
        ctx.details = capture, rule, call, names, x.dtype
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        capture, rule, call, names, dtype = ctx.details
        shape = call.arguments[0].shape
        g = positions(gradients[0])
        active = active_ranges(g)
        capture._receive(rule, replace(call, active=active), names, g)
        with _full_precision(g):
            weight = call.module.weight.detach()
            used = sum(stop - start for start, stop in active) if active is not None else g.shape[0] * g.shape[1]
            if active is None or 2 * used > g.shape[0] * g.shape[1]:
                return rule.input_gradient(g, weight).to(dtype).reshape(shape), None, None, None, None, None
            examples = [b for b, (start, stop) in enumerate(active) for _ in range(start, stop)]
            places = [t for start, stop in active for t in range(start, stop)]
            gradient = torch.zeros(*g.shape[:2], shape[-1], dtype=g.dtype, device=g.device)
            gradient[examples, places] = rule.input_gradient(g[examples, places], weight)
            return gradient.to(dtype).reshape(shape), None, None, None, None, None


def owners(model: nn.Module, names: Collection[str]) -> Owners:
    """The modules that own the named parameters directly: module → its name of the parameter → the model's.

    A parameter that several modules share has one name in the model and several owners; a module that has it from one
    of its submodules (the bias of BERT's decoder) leaves its use to that one.
    """
    model_name = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for module in model.modules():
        inner = {id(parameter) for child in module.children() for parameter in child.parameters()}
        own = {
            key: model_name[id(parameter)]
            for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if model_name[id(parameter)] in names and id(parameter) not in inner
        }
        if own:
            found[module] = own
    return found


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Sums are float32, also where the passes around them run under autocast."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
