"""The GPU's kernel, through Triton's interpreter where there is no GPU."""

import os
import sys

import pytest
import torch

if sys.platform != "linux":
    pytest.skip("Triton is for Linux only", allow_module_level=True)

from stages.curvature.fused_gpu import add_squared_products_on_gpu

DEVICE = "cpu" if "TRITON_INTERPRET" in os.environ else "cuda"  # tests/conftest.py sets it

# bfloat16 is not in numpy, which the interpreter computes with; float16 takes the same way through the kernel.
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(
    ("examples", "positions", "m", "n"),
    [(1, 1, 3, 5), (3, 7, 64, 64), (2, 33, 70, 40), (4, 32, 130, 65)],
)
def test_adds_what_float64_says(examples: int, positions: int, m: int, n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(examples, positions, m, generator=generator).to(dtype)
    right = torch.randn(examples, positions, n, generator=generator).to(dtype)
    before = torch.rand(m, n, generator=generator)
    wanted = before.double()
    for b in range(examples):
        wanted += (left[b].double().T @ right[b].double()) ** 2
    total = before.to(DEVICE)
    add_squared_products_on_gpu(total, left.to(DEVICE), right.to(DEVICE))
    assert float((total.cpu().double() - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("positions", [5, 16, 33])
def test_tf32(positions: int) -> None:
    """Which the interpreter, unlike a GPU, computes in float32."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, positions, width, generator=generator) for width in (20, 70))
    total = torch.zeros(20, 70).to(DEVICE)
    torch.set_float32_matmul_precision("high")
    try:
        add_squared_products_on_gpu(total, left.to(DEVICE), right.to(DEVICE))
    finally:
        torch.set_float32_matmul_precision("highest")
    wanted = (left.double().transpose(1, 2) @ right.double()).square().sum(0)
    error = float((total.cpu().double() - wanted).norm() / wanted.norm())
    assert error < (1e-6 if DEVICE == "cpu" else 5e-3)


def test_strided_inputs_and_results() -> None:
    left, right = torch.randn(5, 2, 6).transpose(0, 1), torch.randn(2, 9, 5).transpose(1, 2)
    total = torch.zeros(9, 6).to(DEVICE).t()
    add_squared_products_on_gpu(total, left.to(DEVICE), right.to(DEVICE))
    wanted = (left.double().transpose(1, 2) @ right.double()).square().sum(0)
    assert float((total.cpu().double() - wanted).norm() / wanted.norm()) < 1e-6
