"""Rows that were picked by what is in them: a router's experts, the last token of each text.

Such a module's rows are an example's own only if as many were picked of every example. That holds for the last token of
each text; for an expert it can hold by chance, in the batch that was checked and not in the next. So wherever rows were
picked, each batch is asked whose they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.curvature.calls import by_example

PICKING = ("IndexBackward", "IndexSelectBackward", "MaskedSelectBackward", "GatherBackward", "TakeBackward")
MOST_STEPS = 1000  # that are looked at between two modules
SCALES = (1.0, 2.0, 4.0, 8.0)  # exact in every type
CLOSE = 0.05  # relative; another example's rows are off by a factor of two


def picked_rows(tensors: Sequence[Tensor], known: Mapping[Any, bool]) -> bool:
    """Whether rows of these tensors were picked since the modules that they come from.

    Args:
        tensors: what a module is called with.
        known: the graph's nodes of modules' outputs → whether those modules' rows were picked.
    """
    nodes = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(nodes)
    while nodes and len(seen) < MOST_STEPS:
        node = nodes.pop()
        if node in known:
            if known[node]:
                return True
            continue
        if node.name().startswith(PICKING):
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return bool(nodes)


def scales_of(examples: int, like: Tensor) -> Tensor:
    """A power of two for each example, [B, 1, …], to tell examples apart by."""
    draws = torch.randint(len(SCALES), (examples,), generator=torch.Generator().manual_seed(0))
    return torch.tensor(SCALES)[draws].to(like).reshape(-1, *[1] * (like.ndim - 1))


def are_the_examples_own(g: Tensor, scaled: Tensor, axis: int, examples: int) -> bool:
    """Whether the gradients g at a module's rows are each of the example that they are taken for.

    Args:
        g: the gradient at a module's output.
        scaled: the same, of a backward pass in which every example's vector was multiplied by its `scales_of`.
        axis: the examples'.
        examples: how many there are.
    """
    g, scaled = by_example(g, axis, examples), by_example(scaled, axis, examples)
    wanted = (g * scales_of(examples, g)).float().flatten(1)
    difference = (scaled.float().flatten(1) - wanted).norm(dim=1)
    return bool((difference <= CLOSE * wanted.norm(dim=1)).all())
