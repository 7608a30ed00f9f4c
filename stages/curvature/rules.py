"""Per layer: from its input and the gradient at its output, the sum over examples of each parameter's squared gradient.

A rule is called with the module, its input x and the gradient g at its output, both batch-first, and adds to `sums`
(parameter name in the module → accumulator of the parameter's shape) the sum over the batch's examples b of G_b²,
where G_b is the gradient of example b alone. No gradient of a parameter is ever formed by autograd, and no batch of
per-example gradients is held.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Rule = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], None]


def linear(module: nn.Module, x: Tensor, g: Tensor, sums: Mapping[str, Tensor]) -> None:
    """Linear, x [B, …, in], g [B, …, out]: G_b = g_bᵀ x_b over the example's positions; the bias has Σ_t g_bt."""
    x, g = _positions(x), _positions(g)
    if "weight" in sums:
        if x.shape[1] == 1:
            # One position: (g xᵀ)² = g² (x²)ᵀ, one matrix product for the batch.
            sums["weight"].addmm_(g[:, 0].square().t(), x[:, 0].square())
        else:
            product = torch.empty_like(sums["weight"])
            for x_b, g_b in zip(x, g, strict=True):
                torch.mm(g_b.t(), x_b, out=product)
                sums["weight"].addcmul_(product, product)
    if "bias" in sums:
        sums["bias"].add_(g.sum(1).square().sum(0))


def layer_norm(module: nn.Module, x: Tensor, g: Tensor, sums: Mapping[str, Tensor]) -> None:
    """LayerNorm, x and g [B, …, normalized_shape]: weight Σ_t g_bt x̂_bt, bias Σ_t g_bt."""
    assert isinstance(module, nn.LayerNorm)
    shape = module.normalized_shape
    g_flat = g.reshape(g.shape[0], -1, *shape)
    if "weight" in sums:
        normalized = nn.functional.layer_norm(x, shape, eps=module.eps).reshape(g_flat.shape)
        sums["weight"].add_((g_flat * normalized).sum(1).square().sum(0))
    if "bias" in sums:
        sums["bias"].add_(g_flat.sum(1).square().sum(0))


def embedding(module: nn.Module, x: Tensor, g: Tensor, sums: Mapping[str, Tensor]) -> None:
    """Embedding, x [B, …] ids, g [B, …, H]: g is summed over equal ids within an example, then squared."""
    assert isinstance(module, nn.Embedding)
    if module.max_norm is not None or module.scale_grad_by_freq:
        raise ValueError("an embedding with max_norm or scale_grad_by_freq has no per-example gradient")
    batch = g.shape[0]
    ids = x.reshape(batch, -1)
    example = torch.arange(batch, device=ids.device)[:, None]
    keys, place = torch.unique(example * module.num_embeddings + ids, return_inverse=True)
    gradients = g.new_zeros(len(keys), g.shape[-1]).index_add_(0, place.reshape(-1), g.reshape(-1, g.shape[-1]))
    rows = keys % module.num_embeddings
    if module.padding_idx is not None:
        gradients[rows == module.padding_idx] = 0
    sums["weight"].index_add_(0, rows, gradients.square_())


def _positions(tensor: Tensor) -> Tensor:
    """[B, …, C] as [B, T, C], with T = 1 for [B, C]."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.LayerNorm: layer_norm,
    nn.Embedding: embedding,
}
