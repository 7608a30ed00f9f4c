"""Σ_b (left_bᵀ right_b)² on a CPU, in one pass: products stay in registers and are never written to memory.

Numba compiles the loops, and keeps what it compiled beside this file. It runs them on the threads that torch's own
operations run on. The innermost loop is in LLVM's vector instructions: no compiler would find by itself that a block of
products fits the registers.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

# A block of products fills half of the registers: enough that one multiplication need not wait for another's result.
ROWS = 4
LANES, VECTORS = (16, 4) if binding.get_host_cpu_features().get("avx512f") else (8, 2)
COLUMNS = LANES * VECTORS
FLOAT_BYTES = 4


def add_squared_products_on_cpu(total: Tensor, left: Tensor, right: Tensor, ranges: list[tuple[int, int]]) -> None:
    """Add Σ_b (left_bᵀ right_b)² to `total`.

    A value's products are summed in the order of positions, its squares in that of examples: any number of threads
    gives the same bits.

    Args:
        total: [m, n] in float32; the values of a row lie side by side.
        left: [B, T, m] in float32.
        right: [B, T, n] in float32.
        ranges: per example the positions start … stop − 1 outside of which its products are zero.
    """
    starts, stops = np.array(ranges, dtype=np.int64).reshape(-1, 2).T.copy()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    _add_squared_products(total.numpy(), left.contiguous().numpy(), right.contiguous().numpy(), starts, stops - starts)


@intrinsic
def _add_squared_block(
    context: Any, total: Any, total_stride: Any, left: Any, left_stride: Any, right: Any, positions: Any
) -> tuple[Any, Callable[..., Any]]:
    """Add (Σ_t left_t right_tᵀ)² to a block of ROWS × COLUMNS values.

    Args:
        context: Numba's.
        total: address of the block's first value.
        total_stride: from one of its rows to the next, in bytes.
        left: address of the first position's ROWS values.
        left_stride: from one position to the next, in bytes.
        right: address of the first position's COLUMNS values; the next position's follow them.
        positions: how many there are, at least one.
    """
    return types.void(*[types.intp] * 6), _generate_squared_block


def _generate_squared_block(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    total, total_stride, left, left_stride, right, positions = arguments
    address, number, vector = positions.type, ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)
    undefined, first_lane = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    all_from_first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
    )

    def pointer(start: ir.Value, values: int, kind: ir.Type) -> ir.Value:
        place = builder.add(start, ir.Constant(address, FLOAT_BYTES * values))
        return builder.inttoptr(place, kind.as_pointer())

    def load(place: ir.Value) -> ir.Value:
        return builder.load(place, align=FLOAT_BYTES)

    before, loop, after = builder.block, *map(builder.append_basic_block, ("position", "squares"))
    builder.branch(loop)
    builder.position_at_end(loop)
    position, left_t, right_t = (builder.phi(address) for _ in range(3))
    products = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(ROWS)]
    right_vectors = [load(pointer(right_t, v * LANES, vector)) for v in range(VECTORS)]
    sums = []
    for row in range(ROWS):
        value = builder.insert_element(undefined, load(pointer(left_t, row, number)), first_lane)
        everywhere = builder.shuffle_vector(value, undefined, all_from_first)
        sums.append(
            [builder.call(multiply_add, [everywhere, right_vectors[v], products[row][v]]) for v in range(VECTORS)]
        )
    for phi, start, step in (
        (position, ir.Constant(address, 0), ir.Constant(address, 1)),
        (left_t, left, left_stride),
        (right_t, right, ir.Constant(address, FLOAT_BYTES * COLUMNS)),
    ):
        phi.add_incoming(start, before)
        phi.add_incoming(builder.add(phi, step), loop)
    for row in range(ROWS):
        for v in range(VECTORS):
            products[row][v].add_incoming(ir.Constant(vector, None), before)
            products[row][v].add_incoming(sums[row][v], loop)
    following = builder.add(position, ir.Constant(address, 1))
    builder.cbranch(builder.icmp_signed("<", following, positions), loop, after)
    builder.position_at_end(after)
    for row in range(ROWS):
        for v in range(VECTORS):
            place = pointer(builder.add(total, builder.mul(total_stride, ir.Constant(address, row))), v * LANES, vector)
            builder.store(
                builder.call(multiply_add, [sums[row][v], sums[row][v], load(place)]), place, align=FLOAT_BYTES
            )
    return context.get_dummy_value()


# Plain loops in place of array expressions: Numba takes seconds to compile those.
@numba.njit
def _add_to_strip(
    total: np.ndarray, left: np.ndarray, right: np.ndarray, starts: np.ndarray, counts: np.ndarray, column: int
) -> None:
    """Add to COLUMNS columns of the result (at its edge fewer) from `column` on, ROWS rows at a time."""
    width = min(COLUMNS, total.shape[1] - column)
    packed = np.zeros((counts.sum(), COLUMNS), np.float32)  # those columns of `right`, without the positions left out
    position = 0
    for b in range(len(counts)):
        for t in range(counts[b]):
            _copy(right[b, starts[b] + t], column, packed[position], width)
            position += 1
    edge = np.zeros((ROWS, COLUMNS), np.float32)  # blocks that are not wholly inside the result are added up here
    edge_left = np.zeros((left.shape[1], ROWS), np.float32)
    for row in range(0, len(total), ROWS):
        height = min(ROWS, len(total) - row)
        whole = height == ROWS and width == COLUMNS
        block = total[row:, column:] if whole else edge
        position = 0
        for b in range(len(counts)):
            if counts[b] > 0:
                left_b = left[b, starts[b] :, row:]
                if height < ROWS:
                    for t in range(counts[b]):
                        _copy(left_b[t], 0, edge_left[t], height)
                    left_b = edge_left[:, 0:]
                right_b = packed[position:]
                _add_squared_block(  # type: ignore[call-arg]  # Numba passes `context`
                    block.ctypes.data,
                    block.strides[0],
                    left_b.ctypes.data,
                    left_b.strides[0],
                    right_b.ctypes.data,
                    counts[b],
                )
                position += counts[b]
        if not whole:
            for r in range(height):
                for c in range(width):
                    total[row + r, column + c] += edge[r, c]
            edge[:] = 0


@numba.njit
def _copy(source: np.ndarray, start: int, target: np.ndarray, count: int) -> None:
    """target[: count] = source[start : start + count]."""
    begin = np.uint64(start)  # unsigned, so that no index counts from the end
    for i in range(np.uint64(count)):
        target[i] = source[begin + i]


TENSOR = types.Array(types.float32, 3, "C")
NUMBERS = types.Array(types.int64, 1, "C")


@numba.njit((types.Array(types.float32, 2, "A"), TENSOR, TENSOR, NUMBERS, NUMBERS), parallel=True, cache=True)
def _add_squared_products(
    total: np.ndarray, left: np.ndarray, right: np.ndarray, starts: np.ndarray, counts: np.ndarray
) -> None:
    for strip in numba.prange((total.shape[1] + COLUMNS - 1) // COLUMNS):
        _add_to_strip(total, left, right, starts, counts, strip * COLUMNS)
