"""Σ_b (left_bᵀ right_b)²: the squared per-example gradients of a weight matrix, never a batch of them in memory."""

import torch
from torch import Tensor

TILE_VALUES = 1 << 18  # 1 MiB of float32: what a core's L2 cache holds
PROBE = 8  # channels that are looked at first; nearly all positions that are not zero show it there


def add_squared_products(total: Tensor, left: Tensor, right: Tensor, ranges: list[tuple[int, int]] | None) -> None:
    """Add Σ_b (left_bᵀ right_b)² to `total`.

    Args:
        total: [m, n] in float32.
        left: [B, T, m].
        right: [B, T, n], of the same type. Products of bfloat16 values are exact in float32 and summed there.
        ranges: per example the positions start … stop − 1 outside of which its products are zero; None: unknown.
    """
    if ranges is not None and all(stop - start <= 1 for start, stop in ranges):
        # One position: (l rᵀ)² = l² (r²)ᵀ, one matrix product for the batch.
        rows = [b for b, (start, stop) in enumerate(ranges) if start < stop]
        positions = [ranges[b][0] for b in rows]
        left, right = left[rows, positions].float(), right[rows, positions].float()
        total.addmm_(left.square().t(), right.square())
    elif total.is_cuda:
        from stages.curvature.fused import add_squared_products_fused

        add_squared_products_fused(total, left, right)
    else:
        _add_by_tiles(total, left.float(), right.float(), ranges or [(0, left.shape[1])] * len(left))


def active_ranges(g: Tensor) -> list[tuple[int, int]] | None:
    """Per example the range of positions outside of which g [B, T, C] is zero.

    Padding has no gradient, and behind a pooler of the first position nothing else has. None on an accelerator, where
    asking would wait for all work under way.
    """
    positions = g.shape[1]
    if positions == 1:
        return [(0, 1)] * len(g)
    if g.device.type != "cpu":
        return None
    active = (g.amax(-1).ne(0) | g.amin(-1).ne(0)).to(torch.uint8)  # several times faster than g.any(-1)
    first, last = active.argmax(1).tolist(), active.flip(1).argmax(1).tolist()
    none = active.sum(1).eq(0).tolist()
    return [(0, 0) if empty else (start, positions - end) for start, end, empty in zip(first, last, none, strict=True)]


def _add_by_tiles(total: Tensor, left: Tensor, right: Tensor, ranges: list[tuple[int, int]]) -> None:
    """As many examples at a time as fit the cache; large products one at a time, in one reused tile."""
    examples = max(1, TILE_VALUES // total.numel())
    if examples == 1:
        product = torch.empty_like(total)
        for left_b, right_b, (start, stop) in zip(left, right, ranges, strict=True):
            torch.mm(left_b[start:stop].t(), right_b[start:stop], out=product)
            total.addcmul_(product, product)
    else:
        for left_part, right_part in zip(left.split(examples), right.split(examples), strict=True):
            total.add_(torch.bmm(left_part.transpose(1, 2), right_part).square_().sum(0))
