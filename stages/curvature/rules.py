"""Per module: from a call of it and the gradient g at its output, the squared gradients of each example.

A rule has two forms. `squares` adds to `sums` (parameter name in the module → accumulator) Σ_b G_b², where G_b is the
gradient of example b alone, without ever holding a batch of G_b. `example` gives G_b of one example, for a parameter
that is used more than once: its gradients have to be summed over its uses before they are squared.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from stages.curvature.linear import linear
from stages.curvature.memory import out_of_memory
from stages.curvature.squares import active_ranges, add_squared_products

VMAP_VALUES = 1 << 22  # per-example gradients held at once by the module-local rule


@dataclass(frozen=True)
class Call:
    """A call of a module in a forward pass of B examples, detached from the graph."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    examples: int
    replay: Callable[[], AbstractContextManager[None]]  # calls of the module inside it are not observed
    active: list[tuple[int, int]] | None = None  # the positions with a gradient, if known; see `active_ranges`

    @property
    def x(self) -> Tensor:
        """The first argument, batch-first."""
        x: Tensor = self.arguments[0] if self.arguments else next(iter(self.keywords.values()))
        return x.expand(self.examples, *x.shape[1:]) if len(x) == 1 else x


class Rule(Protocol):
    """How one kind of module is differentiated."""

    def squares(self, call: Call, g: Tensor, sums: Mapping[str, Tensor]) -> None:
        """Add Σ_b G_b² to every accumulator; to none of them if there is an error."""

    def example(self, call: Call, g: Tensor, key: str, b: int) -> Tensor:
        """G_b of the module's parameter `key`, in float32."""


class Linear:
    """Linear, x [B, …, in], g [B, …, out]: G_b = g_bᵀ x_b over the example's positions; the bias has Σ_t g_bt.

    Args:
        transposed: the weight is stored as [in, out], and not as [out, in]; its G_b is x_bᵀ g_b then.
    """

    def __init__(self, transposed: bool = False) -> None:
        self.transposed = transposed

    def squares(self, call: Call, g: Tensor, sums: Mapping[str, Tensor]) -> None:
        g = positions(g)  # once: it copies what attention has transposed
        if "weight" in sums:
            add_squared_products(sums["weight"], *self.sides(call, g), call.active or active_ranges(g))
        if "bias" in sums:
            sums["bias"].add_(g.sum(1, dtype=torch.float32).square_().sum(0))

    def example(self, call: Call, g: Tensor, key: str, b: int) -> Tensor:
        if key == "bias":
            return positions(g)[b].sum(0, dtype=torch.float32)
        left, right = (side[b].float() for side in self.sides(call, g))
        return left.t() @ right

    def sides(self, call: Call, g: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, rows] and [B, T, columns], whose product over an example's positions is the weight's G_b."""
        g, x = positions(g), positions(call.x).to(g.dtype)
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

    def squares(self, call: Call, g: Tensor, sums: Mapping[str, Tensor]) -> None:
        for key, total in sums.items():
            total.add_(self._gradients(call, g, key, slice(None)).square().sum(0))

    def example(self, call: Call, g: Tensor, key: str, b: int) -> Tensor:
        return self._gradients(call, g, key, slice(b, b + 1))[0]

    def _gradients(self, call: Call, g: Tensor, key: str, rows: slice) -> Tensor:
        module = call.module
        assert isinstance(module, nn.LayerNorm)
        shape = module.normalized_shape
        g = g[rows].float()
        g = g.reshape(len(g), -1, *shape)
        if key == "bias":
            return g.sum(1)
        normalized = nn.functional.layer_norm(call.x[rows].float(), shape, eps=module.eps)
        return (g * normalized.reshape(g.shape)).sum(1)


class Embedding:
    """Embedding, x [B, …] ids, g [B, …, H]: g is summed over equal ids within an example, then squared."""

    def squares(self, call: Call, g: Tensor, sums: Mapping[str, Tensor]) -> None:
        module = self._checked(call.module)
        ids = call.x.reshape(call.examples, -1)
        example = torch.arange(call.examples, device=ids.device)[:, None]
        keys, place = torch.unique(example * module.num_embeddings + ids, return_inverse=True)
        width = g.shape[-1]
        gradients = torch.zeros(len(keys), width, device=g.device)
        _add_rows(gradients, place.reshape(-1), g.reshape(-1, width).float())
        rows = keys % module.num_embeddings
        if module.padding_idx is not None:
            gradients[rows == module.padding_idx] = 0
        _add_rows(sums["weight"], rows, gradients.square_())

    def example(self, call: Call, g: Tensor, key: str, b: int) -> Tensor:
        module = self._checked(call.module)
        gradient = torch.zeros(module.weight.shape, device=g.device)
        _add_rows(gradient, call.x[b].reshape(-1), g[b].reshape(-1, g.shape[-1]).float())
        if module.padding_idx is not None:
            gradient[module.padding_idx] = 0
        return gradient

    @staticmethod
    def _checked(module: nn.Module) -> nn.Embedding:
        assert isinstance(module, nn.Embedding)
        if module.max_norm is not None or module.scale_grad_by_freq:
            raise ValueError("an embedding with max_norm or scale_grad_by_freq has no per-example gradient")
        return module


def _add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """total[rows] += values, repeated rows in a fixed order."""
    if total.device.type == "cpu":
        total.index_add_(0, rows, values)
    else:
        total.index_put_((rows,), values, accumulate=True)  # on GPUs, index_add_ adds in no fixed order


class ModuleLocal:
    """Any module: the vector-Jacobian product of that module alone, mapped over examples; a loop where it does not map.

    Tensors whose first axis is the batch's are taken apart into examples; other arguments are the same for all. The
    module computes in its parameters' type, whatever the pass around it computed in.
    """

    def squares(self, call: Call, g: Tensor, sums: Mapping[str, Tensor]) -> None:
        chunk = max(1, VMAP_VALUES // max(sum(total.numel() for total in sums.values()), 1))
        mapped = self._mapped(call)
        added = {key: torch.zeros_like(total) for key, total in sums.items()}
        try:
            with call.replay():
                for start in range(0, call.examples, chunk):
                    rows = slice(start, start + chunk)
                    part = {place: tensor[rows] for place, tensor in mapped.items()}
                    pull = vmap(lambda one, g_b: self._pull(call, one, g_b[None], list(sums)))
                    for key, gradients in pull(part, g[rows]).items():
                        added[key].add_(gradients.square().sum(0))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            for key, value in added.items():
                value.zero_()
                for b in range(call.examples):
                    gradient = self.example(call, g, key, b)
                    value.addcmul_(gradient, gradient)
        for key, total in sums.items():
            total.add_(added[key])

    def example(self, call: Call, g: Tensor, key: str, b: int) -> Tensor:
        with call.replay():
            mapped = {place: tensor[b] for place, tensor in self._mapped(call).items()}
            return self._pull(call, mapped, g[b : b + 1], [key])[key]

    @staticmethod
    def _mapped(call: Call) -> dict[int | str, Tensor]:
        """The tensors to take apart, by position or keyword."""
        places: list[tuple[int | str, Any]] = [*enumerate(call.arguments), *call.keywords.items()]
        return {
            place: value
            for place, value in places
            if isinstance(value, Tensor) and value.ndim > 0 and len(value) == call.examples
        }

    @staticmethod
    def _pull(call: Call, mapped: Mapping[int | str, Tensor], g_b: Tensor, keys: list[str]) -> dict[str, Tensor]:
        """The gradients of one example, whose mapped tensors come without the batch axis."""
        own = {key: getattr(call.module, key).detach() for key in keys}
        dtype = next(iter(own.values())).dtype

        def argument(place: int | str, value: Any) -> Any:
            value = mapped[place][None] if place in mapped else value
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        arguments = tuple(argument(place, value) for place, value in enumerate(call.arguments))
        keywords = {place: argument(place, value) for place, value in call.keywords.items()}
        output, pull = vjp(lambda parameters: functional_call(call.module, parameters, arguments, keywords), own)[:2]
        return {key: gradient.float() for key, gradient in pull(g_b.to(output.dtype))[0].items()}


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


def rule_for(module: nn.Module) -> Rule:
    """The rule for exactly this class of module; a subclass may compute something else, so it gets the local rule."""
    kind = type(module)
    return _RULES.get(f"{kind.__module__}.{kind.__qualname__}", _MODULE_LOCAL)
