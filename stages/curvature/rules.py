"""Per module: from a call of it and the gradient g at its output, the squared gradients of each example.

A rule has two forms. `squares` adds to `sums` (parameter name in the module → accumulator) Σ_b G_b², where G_b is the
gradient of example b alone, without ever holding a batch of G_b. `example` gives G_b of one example, for a parameter
that is used more than once: its gradients have to be summed over its uses before they are squared.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

VMAP_VALUES = 1 << 24  # per-example gradients held at once by the module-local rule


@dataclass(frozen=True)
class Call:
    """A call of a module in a forward pass of B examples, detached from the graph."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    examples: int
    replay: AbstractContextManager[None]  # calls of the module inside it are not observed

    @property
    def x(self) -> Tensor:
        """The first argument, batch-first."""
        x: Tensor = self.arguments[0] if self.arguments else next(iter(self.keywords.values()))
        return x.expand(self.examples, *x.shape[1:]) if len(x) == 1 else x


class Rule(Protocol):
    """How one kind of module is differentiated."""

    def squares(self, call: Call, g: Tensor, sums: Mapping[str, Tensor]) -> None:
        """Add Σ_b G_b² to every accumulator."""

    def example(self, call: Call, g: Tensor, key: str, b: int) -> Tensor:
        """G_b of the module's parameter `key`."""


class Linear:
    """Linear, x [B, …, in], g [B, …, out]: G_b = g_bᵀ x_b over the example's positions; the bias has Σ_t g_bt."""

    def squares(self, call: Call, g: Tensor, sums: Mapping[str, Tensor]) -> None:
        x, g = _positions(call.x), _positions(g)
        if "weight" in sums:
            left, right = self._sides(x, g)
            if x.shape[1] == 1:
                # One position: (g xᵀ)² = g² (x²)ᵀ, one matrix product for the batch.
                sums["weight"].addmm_(left[:, 0].square().t(), right[:, 0].square())
            else:
                product = torch.empty_like(sums["weight"], dtype=left.dtype)
                for left_b, right_b in zip(left, right, strict=True):
                    torch.mm(left_b.t(), right_b, out=product)
                    sums["weight"].addcmul_(product, product)
        if "bias" in sums:
            sums["bias"].add_(g.sum(1).square().sum(0))

    def example(self, call: Call, g: Tensor, key: str, b: int) -> Tensor:
        x_b, g_b = _positions(call.x[b : b + 1]), _positions(g[b : b + 1])
        if key == "bias":
            return g_b[0].sum(0)
        left, right = self._sides(x_b, g_b)
        return left[0].t() @ right[0]

    def _sides(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The factors whose product over positions has the weight's shape."""
        return g, x


class Conv1D(Linear):
    """transformers' Conv1D (GPT-2): a Linear whose weight is stored transposed, [in, out]."""

    def _sides(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return x, g


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
        g = g[rows].reshape(len(g[rows]), -1, *shape)
        if key == "bias":
            return g.sum(1)
        normalized = nn.functional.layer_norm(call.x[rows], shape, eps=module.eps)
        return (g * normalized.reshape(g.shape)).sum(1)


class Embedding:
    """Embedding, x [B, …] ids, g [B, …, H]: g is summed over equal ids within an example, then squared."""

    def squares(self, call: Call, g: Tensor, sums: Mapping[str, Tensor]) -> None:
        module = self._checked(call.module)
        ids = call.x.reshape(call.examples, -1)
        example = torch.arange(call.examples, device=ids.device)[:, None]
        keys, place = torch.unique(example * module.num_embeddings + ids, return_inverse=True)
        width = g.shape[-1]
        gradients = g.new_zeros(len(keys), width).index_add_(0, place.reshape(-1), g.reshape(-1, width))
        rows = keys % module.num_embeddings
        if module.padding_idx is not None:
            gradients[rows == module.padding_idx] = 0
        sums["weight"].index_add_(0, rows, gradients.square_().float())

    def example(self, call: Call, g: Tensor, key: str, b: int) -> Tensor:
        module = self._checked(call.module)
        gradient = g.new_zeros(module.weight.shape)
        gradient.index_add_(0, call.x[b].reshape(-1), g[b].reshape(-1, g.shape[-1]))
        if module.padding_idx is not None:
            gradient[module.padding_idx] = 0
        return gradient

    @staticmethod
    def _checked(module: nn.Module) -> nn.Embedding:
        assert isinstance(module, nn.Embedding)
        if module.max_norm is not None or module.scale_grad_by_freq:
            raise ValueError("an embedding with max_norm or scale_grad_by_freq has no per-example gradient")
        return module


class ModuleLocal:
    """Any module: the vector-Jacobian product of that module alone, mapped over examples; a loop where it does not map.

    Tensors whose first axis is the batch's are taken apart into examples; other arguments are the same for all.
    """

    def squares(self, call: Call, g: Tensor, sums: Mapping[str, Tensor]) -> None:
        values = sum(total.numel() for total in sums.values())
        try:
            with call.replay:
                gradients = vmap(
                    lambda mapped, g_b: self._pull(call, mapped, g_b[None], list(sums)),
                    chunk_size=max(1, VMAP_VALUES // max(values, 1)),
                )(self._mapped(call), g)
            for key, total in sums.items():
                total.add_(gradients[key].square().sum(0))
        except RuntimeError:
            for b in range(call.examples):
                for key, total in sums.items():
                    gradient = self.example(call, g, key, b)
                    total.addcmul_(gradient, gradient)

    def example(self, call: Call, g: Tensor, key: str, b: int) -> Tensor:
        with call.replay:
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
        arguments = tuple(mapped[i][None] if i in mapped else value for i, value in enumerate(call.arguments))
        keywords = {key: mapped[key][None] if key in mapped else value for key, value in call.keywords.items()}
        own = {key: getattr(call.module, key).detach() for key in keys}
        pull = vjp(lambda parameters: functional_call(call.module, parameters, arguments, keywords), own)[1]
        gradients: dict[str, Tensor] = pull(g_b)[0]
        return gradients


def _positions(tensor: Tensor) -> Tensor:
    """[B, …, C] as [B, T, C], with T = 1 for [B, C]."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


_RULES: dict[str, Rule] = {
    "torch.nn.modules.linear.Linear": Linear(),
    "torch.nn.modules.normalization.LayerNorm": LayerNorm(),
    "torch.nn.modules.sparse.Embedding": Embedding(),
    "transformers.pytorch_utils.Conv1D": Conv1D(),
}
_MODULE_LOCAL = ModuleLocal()


def rule_for(module: nn.Module) -> Rule:
    """The rule for exactly this class of module; a subclass may compute something else, so it gets the local rule."""
    kind = type(module)
    return _RULES.get(f"{kind.__module__}.{kind.__qualname__}", _MODULE_LOCAL)
