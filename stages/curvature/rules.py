"""Per module: from a call of it and the gradient g at its output, the squared gradients of each example.

A rule has two forms. `squares` adds to `sums` (parameter name in the module → accumulator) Σ_b G_b², where G_b is the
gradient of example b alone, without ever holding a batch of G_b. `example` gives G_b of one example, for a parameter
that is used more than once: its gradients have to be summed over its uses before they are squared.

Both take the gradients at the call's outputs, in the order of `Call.outputs`; None where none has come. All but the
module-local rule are for modules with one output.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_unflatten

from stages.curvature.calls import Call, part_as_called, parts_of
from stages.curvature.errors import CurvatureError
from stages.curvature.linear import linear
from stages.curvature.memory import out_of_memory
from stages.curvature.squares import active_ranges, add_squared_products

Gradients = Sequence[Tensor | None]

VMAP_VALUES = 1 << 22  # per-example gradients held at once by the module-local rule


class Rule(Protocol):
    """How one kind of module is differentiated."""

    def squares(self, call: Call, gradients: Gradients, sums: Mapping[str, Tensor]) -> None:
        """Add Σ_b G_b² to every accumulator; to none of them if there is an error."""

    def example(self, call: Call, gradients: Gradients, key: str, b: int) -> Tensor:
        """G_b of the module's parameter `key`, in float32, or float64 where the gradient is."""


class Linear:
    """Linear, x [B, …, in], g [B, …, out]: G_b = g_bᵀ x_b over the example's positions; the bias has Σ_t g_bt.

    Args:
        transposed: the weight is stored as [in, out], and not as [out, in]; its G_b is x_bᵀ g_b then.
    """

    def __init__(self, transposed: bool = False) -> None:
        self.transposed = transposed

    def squares(self, call: Call, gradients: Gradients, sums: Mapping[str, Tensor]) -> None:
        g = positions(_only(call, gradients))  # once: it copies what attention has transposed
        if "weight" in sums:
            add_squared_products(sums["weight"], *self._sides(call, g), call.active or active_ranges(g))
        if "bias" in sums:
            sums["bias"].add_(g.sum(1, dtype=_wide(g)).square_().sum(0))

    def example(self, call: Call, gradients: Gradients, key: str, b: int) -> Tensor:
        g = positions(_only(call, gradients))
        if key == "bias":
            return g[b].sum(0, dtype=_wide(g))
        left, right = (side[b].to(_wide(g)) for side in self._sides(call, g))
        return left.t() @ right

    def sides(self, call: Call, gradients: Gradients) -> tuple[Tensor, Tensor]:
        """[B, T, rows] and [B, T, columns], whose product over an example's positions is the weight's G_b."""
        return self._sides(call, positions(_only(call, gradients)))

    def _sides(self, call: Call, g: Tensor) -> tuple[Tensor, Tensor]:
        x = positions(call.x).to(g.dtype)
        return (x, g) if self.transposed else (g, x)

    def sizes(self, weight: Tensor) -> tuple[int, int]:
        """The numbers of inputs and of outputs."""
        rows, columns = weight.shape
        return (rows, columns) if self.transposed else (columns, rows)

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        """The gradient [..., in] at the input, from g [..., out]."""
        weight = weight.to(g.dtype)
        return linear(g, weight if self.transposed else weight.t())


class LayerNorm:
    """LayerNorm, x and g [B, …, normalized_shape]: weight Σ_t g_bt x̂_bt, bias Σ_t g_bt."""

    def squares(self, call: Call, gradients: Gradients, sums: Mapping[str, Tensor]) -> None:
        for key, total in sums.items():
            total.add_(self._gradients(call, gradients, key, slice(None)).square().sum(0))

    def example(self, call: Call, gradients: Gradients, key: str, b: int) -> Tensor:
        return self._gradients(call, gradients, key, slice(b, b + 1))[0]

    def _gradients(self, call: Call, gradients: Gradients, key: str, rows: slice) -> Tensor:
        module = call.module
        assert isinstance(module, nn.LayerNorm)
        shape = module.normalized_shape
        g = _only(call, gradients)[rows]
        g = g.reshape(len(g), -1, *shape).to(_wide(g))
        if key == "bias":
            return g.sum(1)
        normalized = nn.functional.layer_norm(call.x[rows].to(g.dtype), shape, eps=module.eps)
        return (g * normalized.reshape(g.shape)).sum(1)


class Embedding:
    """Embedding, x [B, …] ids, g [B, …, H]: g is summed over equal ids within an example, then squared."""

    def squares(self, call: Call, gradients: Gradients, sums: Mapping[str, Tensor]) -> None:
        module = self._checked(call.module)
        g = _only(call, gradients)
        ids = call.x.reshape(call.examples, -1)
        example = torch.arange(call.examples, device=ids.device)[:, None]
        keys, place = torch.unique(example * module.num_embeddings + ids, return_inverse=True)
        width = g.shape[-1]
        by_row = torch.zeros(len(keys), width, device=g.device, dtype=_wide(g))
        _add_rows(by_row, place.reshape(-1), g.reshape(-1, width).to(by_row.dtype))
        rows = keys % module.num_embeddings
        if module.padding_idx is not None:
            by_row[rows == module.padding_idx] = 0
        _add_rows(sums["weight"], rows, by_row.square_().to(sums["weight"].dtype))

    def example(self, call: Call, gradients: Gradients, key: str, b: int) -> Tensor:
        module = self._checked(call.module)
        g = _only(call, gradients)
        gradient = torch.zeros(module.weight.shape, device=g.device, dtype=_wide(g))
        _add_rows(gradient, call.x[b].reshape(-1), g[b].reshape(-1, g.shape[-1]).to(gradient.dtype))
        if module.padding_idx is not None:
            gradient[module.padding_idx] = 0
        return gradient

    @staticmethod
    def _checked(module: nn.Module) -> nn.Embedding:
        assert isinstance(module, nn.Embedding)
        if module.max_norm is not None or module.scale_grad_by_freq:
            raise CurvatureError("an embedding with max_norm or scale_grad_by_freq has no per-example gradient")
        return module


def _add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """total[rows] += values, repeated rows in a fixed order."""
    if total.device.type == "cpu":
        total.index_add_(0, rows, values)
    else:
        total.index_put_((rows,), values, accumulate=True)  # on GPUs, index_add_ adds in no fixed order


class ModuleLocal:
    """Any module: the vector-Jacobian product of that module alone, mapped over examples; a loop where it does not map.

    Tensors are taken apart into examples along the axes of the call's layout; other arguments are the same for all.
    What ran under autocast is computed in the type of the module's parameters here.
    """

    def squares(self, call: Call, gradients: Gradients, sums: Mapping[str, Tensor]) -> None:
        added = {key: torch.zeros_like(total) for key, total in sums.items()}
        try:
            self._add_mapped(call, gradients, added)
        except Exception as error:  # whatever comes of a module that cannot be mapped
            if out_of_memory(error):
                raise
            for key, value in added.items():
                value.zero_()
                for b in range(call.examples):
                    gradient = self.example(call, gradients, key, b)
                    value.addcmul_(gradient, gradient)
        for key, total in sums.items():
            total.add_(added[key])

    def example(self, call: Call, gradients: Gradients, key: str, b: int) -> Tensor:
        """By plain autograd, which takes modules that `torch.func` does not."""
        places, ends = _ends(call, gradients)
        parameter = call.module.get_parameter(key)
        required = parameter.requires_grad
        with call.replay(), torch.enable_grad():
            parameter.requires_grad_(True)
            try:
                arguments, keywords = _arguments(call, [part[b] for part in _parts(call)])
                outputs = _tensors_at(call.module(*arguments, **keywords), places)
                reached = [(y, end[b].to(y.dtype)) for y, end in zip(outputs, ends, strict=True) if y.requires_grad]
                found = (
                    torch.autograd.grad(
                        [y for y, _ in reached], [parameter], [end for _, end in reached], allow_unused=True
                    )
                    if reached
                    else (None,)
                )
            finally:
                parameter.requires_grad_(required)
        gradient = torch.zeros_like(parameter) if found[0] is None else found[0]
        return gradient.to(_wide(gradient))

    def _add_mapped(self, call: Call, gradients: Gradients, added: Mapping[str, Tensor]) -> None:
        places, ends = _ends(call, gradients)
        parts = _parts(call)
        chunk = max(1, VMAP_VALUES // max(sum(total.numel() for total in added.values()), 1))

        def pull(part: Sequence[Tensor], end: Sequence[Tensor]) -> dict[str, Tensor]:
            """The gradients of one example."""
            arguments, keywords = _arguments(call, part)

            def outputs(parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
                return _tensors_at(functional_call(call.module, parameters, arguments, keywords), places)

            own = {key: call.module.get_parameter(key).detach() for key in added}
            found, back = vjp(outputs, own)[:2]
            return back(tuple(g.to(y.dtype) for g, y in zip(end, found, strict=True)))[0]

        with call.replay(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some operation is mapped by a loop
            for start in range(0, call.examples, chunk):
                rows = slice(start, start + chunk)
                found = vmap(pull)([part[rows] for part in parts], [end[rows] for end in ends])
                for key, gradient in found.items():
                    added[key].add_(gradient.to(_wide(gradient)).square().sum(0))


def _parts(call: Call) -> list[Tensor]:
    """The arguments to take apart, each [B, n, …]."""
    return [
        parts_of(value, axis, call.examples)
        for value, axis in zip(call.inputs, call.layout.inputs, strict=True)
        if isinstance(value, Tensor) and isinstance(axis, int)
    ]


def _ends(call: Call, gradients: Gradients) -> tuple[list[int], list[Tensor]]:
    """The outputs at which a gradient has come, and the gradients, as their part of one example looks, each [B, …]."""
    arrived = [(place, g) for place, g in zip(call.outputs, gradients, strict=True) if g is not None]
    ends = []
    for place, g in arrived:
        axis = call.output_axis(place)
        ends.append(torch.stack([part_as_called(part, axis) for part in parts_of(g, axis, call.examples)]))
    return [place for place, _ in arrived], ends


def _arguments(call: Call, parts: Sequence[Tensor]) -> tuple[Sequence[Any], dict[str, Any]]:
    """The call's arguments and keywords, with one example's part [n, …] of each tensor that is taken apart."""
    own = iter(parts)
    dtype = next(call.module.parameters()).dtype
    values = []
    for value, axis in zip(call.inputs, call.layout.inputs, strict=True):
        if isinstance(value, Tensor):
            value = part_as_called(next(own), axis) if isinstance(axis, int) else value
            value = value.to(dtype) if call.autocast and value.is_floating_point() else value
        values.append(value)
    arguments, keywords = tree_unflatten(values, call.structure)
    return arguments, keywords


def _tensors_at(output: object, places: Sequence[int]) -> tuple[Tensor, ...]:
    leaves = tree_leaves(output)
    return tuple(leaves[place] for place in places)


def _only(call: Call, gradients: Gradients) -> Tensor:
    """The gradient at the only output, by example."""
    (g,) = gradients
    assert g is not None
    return call.by_example(g)


def _wide(tensor: Tensor) -> torch.dtype:
    """The type that gradients are summed in: float64 for float64, float32 for all others."""
    return torch.promote_types(tensor.dtype, torch.float32)


def positions(tensor: Tensor) -> Tensor:
    """[B, …, C] as [B, T, C], with T = 1 for [B, C]."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


_RULES: dict[str, Rule] = {
    "torch.nn.modules.linear.Linear": Linear(),
    "torch.nn.modules.normalization.LayerNorm": LayerNorm(),
    "torch.nn.modules.sparse.Embedding": Embedding(),
    "transformers.pytorch_utils.Conv1D": Linear(transposed=True),  # GPT-2's
}
_MODULE_LOCAL = ModuleLocal()


def local_rule() -> Rule:
    """The rule for any module."""
    return _MODULE_LOCAL


def rule_for(module: nn.Module) -> Rule:
    """The rule for exactly this class of module; a subclass may compute something else, so it gets the local rule."""
    kind = type(module)
    return _RULES.get(f"{kind.__module__}.{kind.__qualname__}", _MODULE_LOCAL)
