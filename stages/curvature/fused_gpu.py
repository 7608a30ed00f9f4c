"""Σ_b (left_bᵀ right_b)² on a GPU, in one kernel: products stay in registers and are never written to memory."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

PROGRAMS = 2  # per multiprocessor: examples are shared out until there are as many
ALIGNED = 16  # values; strides of other multiples are loaded one value at a time


@dataclass(frozen=True)
class Tiling:
    """Who computes what in the kernel.

    Attributes:
        rows: of the result's tile that a program computes.
        columns: of the same.
        positions: most that are multiplied at a time.
        warps: per program.
        stages: tiles of the inputs that are on their way at once.
    """

    rows: int
    columns: int
    positions: int
    warps: int
    stages: int


# The fastest of a few dozen each for BERT-base's shapes on an H100.
FLOAT32 = Tiling(64, 64, 16, 4, 3)
TF32 = Tiling(64, 128, 32, 4, 3)
HALF = Tiling(64, 64, 128, 4, 3)


def add_squared_products_on_gpu(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add Σ_b (left_bᵀ right_b)² to `total` [m, n] float32; left [B, T, m], right [B, T, n] of one type.

    Products are summed in float32. Those of float32 values use TF32 where `torch.set_float32_matmul_precision` allows
    it, as torch's own do. On one kind of GPU, the same inputs give the same bits.
    """
    if left.dtype != torch.float32:
        tiling, precision = HALF, "ieee"
    elif torch.get_float32_matmul_precision() == "highest":
        tiling, precision = FLOAT32, "ieee"
    else:
        tiling, precision = TF32, "tf32"
    if precision == "tf32":
        # The matrix units want a position after the other, and have to rearrange anything else.
        left, right = (_positions_last(side) for side in (left, right))
    else:
        left, right = left.contiguous(), right.contiguous()
    examples, positions, m = left.shape
    n = right.shape[-1]
    tiles = triton.cdiv(m, tiling.rows) * triton.cdiv(n, tiling.columns)
    parts = min(examples, triton.cdiv(PROGRAMS * _multiprocessors(total.device), tiles))
    per_part = triton.cdiv(examples, parts)
    sums = total[None] if parts == 1 else total.new_zeros(parts, m, n)
    chunk = min(tiling.positions, max(16, triton.next_power_of_2(positions)))
    _kernel[(triton.cdiv(n, tiling.columns), triton.cdiv(m, tiling.rows), parts)](
        sums,
        left,
        right,
        examples,
        per_part,
        positions,
        m,
        n,
        *sums.stride(),
        *left.stride(),
        *right.stride(),
        rows_per_tile=tiling.rows,
        columns_per_tile=tiling.columns,
        chunk=chunk,
        one_chunk=positions <= chunk,
        precision=precision,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    if parts > 1:
        total.add_(sums.sum(0))


def _positions_last(side: Tensor) -> Tensor:
    """A copy of [B, T, C] with the positions next to each other in memory, and zeros behind them up to ALIGNED."""
    return functional.pad(side.transpose(1, 2), (0, -side.shape[1] % ALIGNED)).contiguous().transpose(1, 2)


def _multiprocessors(device: torch.device) -> int:
    """Of the GPU; Triton's interpreter computes as if there were one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit(do_not_specialize=["examples", "per_part"])  # they would only be reasons to compile it again
def _kernel(
    sums,
    left,
    right,
    examples,
    per_part,
    positions,
    m,
    n,
    sums_part,
    sums_row,
    sums_column,
    left_example,
    left_position,
    left_channel,
    right_example,
    right_position,
    right_channel,
    rows_per_tile: tl.constexpr,
    columns_per_tile: tl.constexpr,
    chunk: tl.constexpr,
    one_chunk: tl.constexpr,
    precision: tl.constexpr,
):
    rows = tl.program_id(1) * rows_per_tile + tl.arange(0, rows_per_tile)
    columns = tl.program_id(0) * columns_per_tile + tl.arange(0, columns_per_tile)
    first = tl.program_id(2).to(tl.int64) * per_part
    last = tl.minimum(first + per_part, examples)
    t = tl.arange(0, chunk)
    left_tiles = left + first * left_example + t[None, :] * left_position + rows[:, None] * left_channel
    right_tiles = right + first * right_example + t[:, None] * right_position + columns[None, :] * right_channel
    squares = tl.zeros((rows_per_tile, columns_per_tile), tl.float32)
    for _ in range(first, last):
        if one_chunk:  # apart, so that the next example's tiles are loaded during this one's product
            left_mask = (t[None, :] < positions) & (rows[:, None] < m)
            right_mask = (t[:, None] < positions) & (columns[None, :] < n)
            left_tile = tl.load(left_tiles, mask=left_mask, other=0.0)
            right_tile = tl.load(right_tiles, mask=right_mask, other=0.0)
            product = tl.dot(left_tile, right_tile, input_precision=precision)
        else:
            product = tl.zeros((rows_per_tile, columns_per_tile), tl.float32)
            for start in range(0, positions, chunk):
                left_mask = (t[None, :] < positions - start) & (rows[:, None] < m)
                right_mask = (t[:, None] < positions - start) & (columns[None, :] < n)
                left_tile = tl.load(left_tiles + start * left_position, mask=left_mask, other=0.0)
                right_tile = tl.load(right_tiles + start * right_position, mask=right_mask, other=0.0)
                product = tl.dot(left_tile, right_tile, product, input_precision=precision)
        squares += product * product
        left_tiles += left_example
        right_tiles += right_example
    place = sums + tl.program_id(2) * sums_part + rows[:, None] * sums_row + columns[None, :] * sums_column
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(place, tl.load(place, mask=inside, other=0.0) + squares, mask=inside)
