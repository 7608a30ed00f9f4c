"""Observing a forward pass: the calls of modules, and the gradients at their outputs."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, register_multi_grad_hook
from torch.utils._pytree import tree_flatten, tree_unflatten

from stages.curvature.calls import Call, Layout, Shapes, by_example, first_tensor, shapes_of
from stages.curvature.errors import CurvatureError, UnsupportedModelError
from stages.curvature.memory import out_of_memory
from stages.curvature.picking import are_the_examples_own, picked_rows, scales_of
from stages.curvature.rules import Gradients, Linear, local_rule, positions
from stages.curvature.squares import active_ranges, add_squared_products
from stages.curvature.sums import Sums
from stages.curvature.units import Unit


class Capture:
    """Adds a batch to `sums` while the model is called on it and backward passes go through it.

    Inside the context, call the model once on a batch of `examples`, then for each output vector `backward`.

    Args:
        units: the modules to observe.
        sums: what is wanted, and where it is added; the number of examples is left to the caller.
        examples: the batch's size.
        masks: [B, T] each, which positions are no padding; an input [B, T, …] is added up where its mask says so.
        picked: modules of which it is known already; None: the graph tells.
        expand: hand every example its own copy of a result [1, …] that a module computes once for the whole batch
            (BERT's position embeddings); otherwise the gradient at it is a sum over the batch, and not usable.

    Attributes:
        not_by_example: parameters whose module was called otherwise, once at least, than its layouts say: their
            gradients cannot be had from here.
        picked: modules whose rows were picked by what is in them; of these, every batch is asked whose they are.
        failed: parameters whose module cannot be differentiated by itself; nothing of them has been added.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        sums: Sums,
        examples: int,
        masks: Sequence[Tensor] = (),
        picked: Collection[nn.Module] | None = None,
        expand: bool = True,
    ) -> None:
        self._units = units
        self._sums = sums
        self._input_weights, self._gradient_weights = sums.weights("inputs"), sums.weights("gradients")
        self._examples = examples
        self._masks = masks
        self._expand = expand
        self._paused = False
        self._calls: Counter[nn.Module] = Counter()
        self._uses: Counter[str] = Counter()
        self._deferred: defaultdict[str, list[tuple[Unit, Call, Gradients, str]]] = defaultdict(list)
        self._hooks = ExitStack()
        self._anchor = torch.zeros((), requires_grad=True)
        self._added: set[str] = set()
        self._nodes: dict[Any, bool] = {}  # of outputs: whether their modules' rows were picked
        self._look_for_picking = picked is None
        self._edges: list[tuple[Call, GradientEdge]] = []  # of the outputs of modules with picked rows
        self._scaled: dict[
            int, list[Tensor | None]
        ] = {}  # by call's number, gradients of a pass that tells examples apart
        self._telling_apart = False
        self.picked: set[nn.Module] = set(picked or ())
        self.not_by_example: set[str] = set()
        self.failed: set[str] = set()

    def __enter__(self) -> "Capture":
        for unit in self._units:
            self._hooks.callback(unit.module.register_forward_hook(self._hook(unit), with_kwargs=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def backward(self, outputs: Tensor, vector: Tensor, last: bool) -> None:
        """One backward pass from `vector` at the model's outputs; adds what comes by to the sums.

        Raises:
            UnsupportedModelError: rows that were picked by what is in them are not their examples' own.
        """
        self._tell_apart(outputs, vector)
        if outputs.requires_grad:
            torch.autograd.backward(outputs, vector, retain_graph=not last)
        for name, uses in self._deferred.items():
            with torch.no_grad(), _full_precision(outputs):
                self._unless_it_fails([name], lambda name=name, uses=uses: self._add_uses(name, uses))  # type: ignore[misc]
        self._deferred.clear()

    def _tell_apart(self, outputs: Tensor, vector: Tensor) -> None:
        """Ask where rows were picked whose they are: a backward pass in which each example has a scale of its own."""
        if not self._edges:
            return
        self._telling_apart = True
        try:
            edges = [edge for _, edge in self._edges]
            scaled = vector * scales_of(self._examples, vector)
            found = torch.autograd.grad(outputs, edges, scaled, retain_graph=True, allow_unused=True)
        finally:
            self._telling_apart = False
        self._scaled.clear()
        for (call, _), g in zip(self._edges, found, strict=True):
            self._scaled.setdefault(call.number, []).append(g)

    def _check_whose(self, unit: Unit, call: Call, gradients: Gradients) -> None:
        for place, g, scaled in zip(call.outputs, gradients, self._scaled.get(call.number, ()), strict=False):
            if g is None or scaled is None:
                continue
            if not are_the_examples_own(g, scaled, call.output_axis(place), self._examples):
                raise UnsupportedModelError(
                    f"the module of {min(unit.names.values())} gets rows that were picked by what is in them (a "
                    "router's expert?), not the same number of each example's; leave the parameter out"
                )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls inside are not observed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _hook(self, unit: Unit) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            if self._paused:
                return None
            inputs, structure = tree_flatten((arguments, keywords))
            outputs, result = tree_flatten(output)
            layout = self._layout(unit, shapes_of(inputs, outputs))
            if (weight := unit.names.get("weight")) in self._input_weights:
                self._add_input(inputs, layout, str(weight))
            if not torch.is_grad_enabled():
                return None
            places = None if layout is None else self._places(layout, outputs)
            if layout is None or places is None:
                self.not_by_example.update(unit.names.values())
                return None
            call = Call(
                sum(self._calls.values()),
                module,
                [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in inputs],
                structure,
                layout,
                self._examples,
                tuple(places),
                self.paused,
                torch.is_autocast_enabled(outputs[places[0]].device.type) if places else False,
            )
            return tree_unflatten(self._observe(unit, call, inputs, outputs), result)

        return hook

    def _layout(self, unit: Unit, shapes: Shapes) -> Layout | None:
        """The layout of this call, None if it is called otherwise."""
        number = self._calls[unit.module]
        self._calls[unit.module] += 1
        if number >= len(unit.layouts):
            return None
        layout = unit.layouts[number]
        return layout.of(shapes, self._examples)

    def _observe(self, unit: Unit, call: Call, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """Register for the gradients at a call's outputs; returns the outputs to go on with."""
        self._uses.update(unit.names.values())
        if self._look_for_picking and picked_rows([x for x in inputs if isinstance(x, Tensor)], self._nodes):
            self.picked.add(unit.module)
        x = inputs[0] if inputs else None
        if (
            isinstance(unit.rule, Linear)
            and isinstance(x, Tensor)
            and x.requires_grad
            and (call.layout.inputs, call.layout.outputs) == ((0,), (0,))
            and not any(parameter.requires_grad for parameter in unit.module.parameters())
        ):
            found = [_LinearOutput.apply(x, outputs[0].detach(), self, unit, call)]
            self._note(unit.module, call, found)
            return found
        found = list(outputs)
        # What the module gives, it may use itself: that use must not come back with the gradient from outside, and what
        # it has kept for its own backward pass (T5's attention its biases) must stay as it is.
        apart = len(call.outputs) > 1 or next(unit.module.children(), None) is not None
        for place in call.outputs:
            y = outputs[place]
            if not isinstance(call.layout.outputs[place], int) and self._examples > 1:
                y = y.expand(self._examples, *y.shape[1:])
            if apart:
                y = y.clone()
            if not y.requires_grad:
                y = _Beginning.apply(self._anchor, y.detach())
            found[place] = y
        watched = [found[place] for place in call.outputs]
        self._note(unit.module, call, watched)
        if len(watched) == 1:
            watched[0].register_hook(lambda g: self._receive(unit, call, [g.detach()]))
        elif watched:
            register_multi_grad_hook(
                watched, lambda gs: self._receive(unit, call, [None if g is None else g.detach() for g in gs])
            )
        return found

    def _note(self, module: nn.Module, call: Call, outputs: Sequence[Tensor]) -> None:
        """Remember what is needed to know where rows were picked."""
        picked = module in self.picked
        if self._look_for_picking:
            self._nodes |= {output.grad_fn: picked for output in outputs}
        elif picked:
            self._edges += [(call, get_gradient_edge(output)) for output in outputs]

    def _places(self, layout: Layout, outputs: Sequence[Any]) -> list[int] | None:
        """Where a result takes gradients; None if it does where it is the same for all examples, and not expanded."""
        places = [place for place, y in enumerate(outputs) if isinstance(y, Tensor) and y.is_floating_point()]
        for place in places:
            alone = self._examples == 1 or (self._expand and outputs[place].ndim > 0 and len(outputs[place]) == 1)
            if not isinstance(layout.outputs[place], int) and not alone:
                return None
        return places

    def _add_input(self, inputs: Sequence[Any], layout: Layout | None, name: str) -> None:
        """x is known as soon as the module is called."""
        place = first_tensor(inputs)
        x, axis = inputs[place].detach(), None if layout is None else layout.inputs[place]
        x = by_example(x, axis, self._examples) if isinstance(axis, int) else x
        with torch.no_grad(), _full_precision(x):
            x = x.float()
            masks = [mask for mask in self._masks if mask.shape == x.shape[:-1]]
            if len(masks) > 1 and not torch.equal(masks[0], masks[1]):
                raise CurvatureError(
                    "encoder and decoder inputs are padded to one length, so that padding cannot be told from the "
                    "shapes of activations; pad the decoder's by one position more"
                )
            x = x[masks[0].bool()] if masks else x.reshape(-1, x.shape[-1])
            self._sums.add("inputs", name, x)

    def _receive(self, unit: Unit, call: Call, gradients: Gradients) -> None:
        """The gradients at a call's outputs have arrived."""
        if self._telling_apart or all(g is None for g in gradients):
            return
        self._check_whose(unit, call, gradients)
        once: dict[str, Tensor] = {}
        for key, name in unit.names.items():
            # By now the forward pass is over, so it is known which parameters are used more than once.
            if name not in self._sums.diagonal or name in self.failed:
                continue
            if self._uses[name] == 1:
                once[key] = self._sums.diagonal[name]
            else:
                self._deferred[name].append((unit, call, gradients, key))
        g = next(g for g in gradients if g is not None)
        with torch.no_grad(), _full_precision(g):
            if once:
                names = [unit.names[key] for key in once]
                self._unless_it_fails(names, lambda: unit.rule.squares(call, gradients, once))
            if unit.names.get("weight") in self._gradient_weights:
                self._sums.add("gradients", unit.names["weight"], positions(g).reshape(-1, g.shape[-1]).float())

    def _unless_it_fails(self, names: Collection[str], add: Callable[[], None]) -> None:
        """Note whose module cannot be called by itself: it may do anything, and so may fail with anything."""
        try:
            add()
        except Exception as error:
            own = {unit.rule for unit in self._units if not set(names).isdisjoint(unit.names.values())}
            # Of our own rules an error is an error; and what was added of the batch before cannot be taken back.
            if out_of_memory(error) or local_rule() not in own or self._added & set(names):
                raise
            self.failed.update(names)
        else:
            self._added.update(names)

    def _add_uses(self, name: str, uses: list[tuple[Unit, Call, Gradients, str]]) -> None:
        """Square the sums over a parameter's uses."""
        total = self._sums.diagonal[name]
        if all(isinstance(unit.rule, Linear) and key == "weight" for unit, _, _, key in uses):
            # A sum of products over positions: the uses are more positions.
            sides = [unit.rule.sides(call, g) for unit, call, g, _ in uses if isinstance(unit.rule, Linear)]
            left, right = (torch.cat([side[i] for side in sides], dim=1) for i in (0, 1))
            add_squared_products(total, left, right, None)
            return
        squares = torch.zeros_like(total)
        for b in range(self._examples):
            gradient = sum(unit.rule.example(call, g, key, b) for unit, call, g, key in uses)
            assert isinstance(gradient, Tensor)
            squares.addcmul_(gradient.to(squares.dtype), gradient.to(squares.dtype))
        total.add_(squares)


class _LinearOutput(torch.autograd.Function):
    """A Linear's output, handed on; its backward pass leaves out the positions that have no gradient.

    Behind a pooler of the first position, that is nearly all of them, up to the attention before it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, capture: Capture, unit: Unit, call: Call) -> Tensor:
        ctx.mark_dirty(output)  # returned as it is: not a view, which the model could not write into
        ctx.details = capture, unit, call, x.dtype
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        capture, unit, call, dtype = ctx.details
        shape = call.inputs[0].shape
        g = positions(gradients[0])
        active = active_ranges(g)
        capture._receive(unit, replace(call, active=active) if len(g) == call.examples else call, [g])
        with _full_precision(g):
            weight = call.module.weight.detach()
            used = sum(stop - start for start, stop in active) if active is not None else g.shape[0] * g.shape[1]
            if active is None or 2 * used > g.shape[0] * g.shape[1]:
                return unit.rule.input_gradient(g, weight).to(dtype).reshape(shape), None, None, None, None
            examples = [b for b, (start, stop) in enumerate(active) for _ in range(start, stop)]
            places = [t for start, stop in active for t in range(start, stop)]
            gradient = torch.zeros(*g.shape[:2], shape[-1], dtype=g.dtype, device=g.device)
            gradient[examples, places] = unit.rule.input_gradient(g[examples, places], weight)
            return gradient.to(dtype).reshape(shape), None, None, None, None


class _Beginning(torch.autograd.Function):
    """A result that depends on nothing observed, as the beginning of a graph that the model may write into."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tensor: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


def _full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Sums are float32, also where the passes around them run under autocast."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
