"""Σ_b (left_bᵀ right_b)²: the squared per-example gradients of a weight matrix, never a batch of them in memory."""

from importlib.util import find_spec

import torch
from torch import Tensor

TILE_VALUES = 1 << 18  # 1 MiB of float32: what a core's L2 cache holds
PROBE = 8  # channels that are looked at first; nearly all positions that are not zero show it there


def add_squared_products(total: Tensor, left: Tensor, right: Tensor, ranges: list[tuple[int, int]] | None) -> None:
    """Add Σ_b (left_bᵀ right_b)² to `total`.

    Args:
        total: [m, n] in float32.
        left: [B, T, m].
        right: [B, T, n], of the same type. Products of bfloat16 values are exact in float32 and summed there; those of
            float64 are summed in float64.
        ranges: per example the positions start … stop − 1 outside of which its products are zero; None: unknown.
    """
    if left.shape[1] == 1:
        _add_single_positions(total, left[:, 0], right[:, 0])
    elif ranges is not None and all(stop - start <= 1 for start, stop in ranges):
        rows = [b for b, (start, stop) in enumerate(ranges) if start < stop]
        positions = [ranges[b][0] for b in rows]
        _add_single_positions(total, left[rows, positions], right[rows, positions])
    elif total.is_cuda and left.dtype != torch.float64 and find_spec("triton") is not None:
        from stages.curvature.fused_gpu import add_squared_products_on_gpu

        add_squared_products_on_gpu(total, left, right)
    elif left.dtype == torch.float64:
        for left_b, right_b in zip(left, right, strict=True):
            total.add_((left_b.t() @ right_b).square_())
    else:
        _add_by_products(total, left.float(), right.float(), ranges or [(0, left.shape[1])] * len(left))


def active_ranges(g: Tensor) -> list[tuple[int, int]] | None:
    """Per example the range of positions outside of which g [B, T, C] is zero; None where finding out costs too much.

    Padding has no gradient, and behind a pooler of the first position nothing else has. On an accelerator, asking would
    wait for all work under way.
    """
    positions = g.shape[1]
    if positions == 1 or g.device.type != "cpu" or g.dtype != torch.float32:
        return None
    values = g.numpy()  # a view; numpy starts such small steps faster than torch
    active = (values[..., :PROBE] != 0).any(-1)
    if active.all():
        return [(0, positions)] * len(g)
    active[~active] = values[~active].any(-1)
    start, stop = active.argmax(1), positions - active[:, ::-1].argmax(1)
    stop[~active.any(1)] = 0
    return list(zip(start.tolist(), stop.tolist(), strict=True))


def _add_single_positions(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Of left [B, m] and right [B, n], (l rᵀ)² = l² (r²)ᵀ: one matrix product for the batch."""
    if left.dtype == torch.float64:
        total.add_(left.square().t() @ right.square())
    else:
        total.addmm_(left.float().square().t(), right.float().square())


def _add_by_products(total: Tensor, left: Tensor, right: Tensor, ranges: list[tuple[int, int]]) -> None:
    """Small results in batched products; large ones by the CPU's kernel, or without it an example at a time."""
    examples = TILE_VALUES // max(total.numel(), 1)
    if examples > 1:
        for left_part, right_part in zip(left.split(examples), right.split(examples), strict=True):
            total.add_(torch.bmm(left_part.transpose(1, 2), right_part).square_().sum(0))
    elif total.device.type == "cpu" and total.stride(1) == 1:
        from stages.curvature.fused_cpu import add_squared_products_on_cpu  # late: Numba takes a moment to import

        add_squared_products_on_cpu(total, left, right, ranges)
    else:
        product = torch.empty_like(total)
        for left_b, right_b, (start, stop) in zip(left.transpose(1, 2).unbind(), right.unbind(), ranges, strict=True):
            torch.mm(left_b[:, start:stop], right_b[start:stop], out=product)
            total.addcmul_(product, product)
