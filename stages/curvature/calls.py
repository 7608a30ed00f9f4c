"""Calls of modules: their tensors, and along which axis of each the examples lie.

A module need not see a batch as [B, …]: it may get [B·T, …] rows (positions folded into the examples), [T, B, …], or a
tuple of tensors, and give as much back. Which axis is the examples' is not guessed from one batch, where another axis
may have the same size by chance: it is the axis that grows threefold when the model is called on three examples.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_leaves

Shape = tuple[int, ...]
Axis = int | None | Literal["unseen"]
"""The examples' axis of a tensor; None: it is the same for all of them; "unseen": no tensor has stood there yet."""


@dataclass(frozen=True)
class Shapes:
    """The shapes of what stands in a call's arguments and in its result, in a line; None for what is no tensor."""

    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]


@dataclass(frozen=True)
class Layout:
    """Where the examples are in what stands in a call's arguments and in its result."""

    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]

    def of(self, shapes: Shapes, examples: int) -> "Layout | None":
        """The layout of a call of these shapes on so many examples; None if it cannot be one of this layout."""
        inputs = _fitting(self.inputs, shapes.inputs, examples)
        outputs = _fitting(self.outputs, shapes.outputs, examples)
        return None if inputs is None or outputs is None else Layout(inputs, outputs)


@dataclass(frozen=True)
class Call:
    """A call of a module in a forward pass of B examples, detached from the graph.

    Attributes:
        number: of the call in its forward pass.
        module: what was called.
        inputs: its arguments, tensors and others, in a line.
        structure: how they are put together again.
        layout: where the examples are.
        examples: B.
        outputs: where in the result gradients are expected, as places in `layout.outputs`.
        replay: calls of the module inside this context are not observed.
        autocast: whether the pass ran under autocast.
        active: the positions with a gradient, if known; see `stages.curvature.squares.active_ranges`.
    """

    number: int
    module: nn.Module
    inputs: Sequence[Any]
    structure: TreeSpec
    layout: Layout
    examples: int
    outputs: tuple[int, ...]
    replay: Callable[[], AbstractContextManager[None]]
    autocast: bool = False
    active: list[tuple[int, int]] | None = None

    @property
    def x(self) -> Tensor:
        """The first argument, [B, …] or, with n of its rows an example, [B, n, …]."""
        place = first_tensor(self.inputs)
        x, axis = self.inputs[place], self.layout.inputs[place]
        return by_example(x, axis, self.examples) if isinstance(axis, int) else x.expand(self.examples, *x.shape[1:])

    def output_axis(self, place: int) -> int:
        """The examples' axis at this place in the result; what was the same for all is expanded along the first."""
        axis = self.layout.outputs[place]
        return axis if isinstance(axis, int) else 0

    def by_example(self, g: Tensor) -> Tensor:
        """The gradient at its only output, [B, …] or, with n of its rows an example, [B, n, …]."""
        return by_example(g, self.output_axis(self.outputs[0]), self.examples)


def by_example(tensor: Tensor, axis: int, examples: int) -> Tensor:
    """[B, …] or, where the examples' axis has n·B rows (an example's side by side), [B, n, …]."""
    first = tensor.movedim(axis, 0) if axis else tensor
    return first if len(first) == examples else first.reshape(examples, -1, *first.shape[1:])


def parts_of(tensor: Tensor, axis: int, examples: int) -> Tensor:
    """[B, n, …], an example's rows apart from the others'; see `part_as_called`."""
    first = tensor.movedim(axis, 0) if axis else tensor
    return first.reshape(examples, len(first) // examples, *first.shape[1:])


def part_as_called(part: Tensor, axis: int) -> Tensor:
    """One example's part [n, …] of a tensor as the module would see it alone."""
    return part.movedim(0, axis) if axis else part


def first_tensor(leaves: Sequence[object]) -> int:
    """The place of the first tensor."""
    return next(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))


def shapes_of(inputs: Sequence[object], outputs: Sequence[object]) -> Shapes:
    """The shapes of what stands in a call's arguments and result."""
    return Shapes(
        *(tuple(tuple(x.shape) if isinstance(x, Tensor) else None for x in leaves) for leaves in (inputs, outputs))
    )


Recording = Mapping[nn.Module, Sequence[Shapes]]


def recorded(modules: Collection[nn.Module], forward: Callable[[], object]) -> Recording:
    """The shapes of every call of the modules while `forward` runs, without gradients."""
    calls: defaultdict[nn.Module, list[Shapes]] = defaultdict(list)

    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: object) -> None:
        calls[module].append(shapes_of(tree_leaves((arguments, keywords)), tree_leaves(output)))

    with ExitStack() as hooks, torch.no_grad():
        for module in modules:
            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        forward()
    return calls


def layouts_of(singles: Sequence[Recording], together: Recording, examples: int) -> dict[nn.Module, list[Layout]]:
    """The layout of each call of the modules that see examples one beside the other.

    Args:
        singles: of passes over one example each. Where two differ in a tensor's shape (a router's expert gets another
            number of rows), the module's rows depend on what is in them, and are no example's own.
        together: of a pass over several examples.
        examples: how many those are.
    """
    found = {}
    for module, calls in together.items():
        alone = [recording.get(module, ()) for recording in singles]
        if any(len(other) != len(calls) for other in alone):
            continue
        layouts = [_layout(ones, many, examples) for *ones, many in zip(*alone, calls, strict=True)]
        if all(layout is not None for layout in layouts):
            found[module] = [layout for layout in layouts if layout is not None]
    return found


def _layout(ones: Sequence[Shapes], many: Shapes, examples: int) -> Layout | None:
    try:
        inputs = [_axis(one, one_of_many, examples) for *one, one_of_many in _places(ones, many, "inputs")]
        outputs = [_axis(one, one_of_many, examples) for *one, one_of_many in _places(ones, many, "outputs")]
    except ValueError:
        return None
    return Layout(tuple(inputs), tuple(outputs))


def _places(
    ones: Sequence[Shapes], many: Shapes, side: Literal["inputs", "outputs"]
) -> Iterator[Sequence[Shape | None]]:
    """Place by place, the shape in each call. Raises `ValueError` if they have not as many."""
    return zip(*(getattr(shapes, side) for shapes in (*ones, many)), strict=True)


def _axis(ones: Sequence[Shape | None], many: Shape | None, examples: int) -> Axis:
    """The axis that grows with the examples. Raises `ValueError` for shapes that do something else."""
    seen = {one for one in ones if one is not None}
    if many is None or not seen:
        return "unseen"
    (one,) = seen
    grown = [axis for axis, sizes in enumerate(zip(one, many, strict=True)) if sizes[0] != sizes[1]]
    if len(grown) > 1 or any(many[axis] != examples * one[axis] for axis in grown):
        raise ValueError(f"{list(one)} of one example is {list(many)} of {examples}")
    return grown[0] if grown else None


def _fitting(axes: Sequence[Axis], shapes: Sequence[Shape | None], examples: int) -> tuple[Axis, ...] | None:
    """The axes of tensors of these shapes; None if they do not fit.

    What was no tensor before (a mask that texts of one length do not need) has its examples along the first axis, if
    they can be there.
    """
    if len(axes) != len(shapes):
        return None
    found: list[Axis] = []
    for axis, shape in zip(axes, shapes, strict=True):
        if axis == "unseen" and shape is not None:
            if not shape or shape[0] not in (1, examples) or (len(shape) == 2 and shape[0] == shape[1] == examples):
                return None
            axis = 0 if shape[0] == examples else None
        elif isinstance(axis, int) and shape is not None and (shape[axis] % examples or not shape[axis]):
            return None
        found.append(axis)
    return tuple(found)
