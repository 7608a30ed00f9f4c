"""Σ_b (left_bᵀ right_b)² on a GPU, in one kernel: products stay in registers and are never written to memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile of the result per program: it goes through all examples in order, so that the sum's order is fixed.
TILE = 64
POSITIONS = 32  # that are multiplied at a time


def add_squared_products_on_gpu(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add Σ_b (left_bᵀ right_b)² to `total` [m, n] float32; left [B, T, m], right [B, T, n] of one type.

    Products are summed in float32. Those of float32 values use TF32 where `torch.set_float32_matmul_precision` allows
    it, as torch's own do.
    """
    left, right = left.contiguous(), right.contiguous()
    examples, positions, m = left.shape
    n = right.shape[-1]
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    _kernel[(triton.cdiv(m, TILE), triton.cdiv(n, TILE))](
        total, left, right, examples, positions, m, n, *total.stride(), TILE, POSITIONS, precision, num_warps=4
    )


@triton.jit
def _kernel(
    total,
    left,
    right,
    examples,
    positions,
    m,
    n,
    row_stride,
    column_stride,
    tile: tl.constexpr,
    chunk: tl.constexpr,
    precision: tl.constexpr,
):
    rows = tl.program_id(0) * tile + tl.arange(0, tile)
    columns = tl.program_id(1) * tile + tl.arange(0, tile)
    squares = tl.zeros((tile, tile), tl.float32)
    for _ in range(examples):
        product = tl.zeros((tile, tile), tl.float32)
        for start in range(0, positions, chunk):
            t = start + tl.arange(0, chunk)
            left_tile = tl.load(
                left + t[None, :] * m + rows[:, None],
                mask=(t[None, :] < positions) & (rows[:, None] < m),
                other=0.0,
            )
            right_tile = tl.load(
                right + t[:, None] * n + columns[None, :],
                mask=(t[:, None] < positions) & (columns[None, :] < n),
                other=0.0,
            )
            product = tl.dot(left_tile, right_tile, product, input_precision=precision)
        squares += product * product
        left += positions * m
        right += positions * n
    place = total + rows[:, None] * row_stride + columns[None, :] * column_stride
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(place, tl.load(place, mask=inside, other=0.0) + squares, mask=inside)
