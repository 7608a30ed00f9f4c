"""Sums of squared products, and the positions that can be left out of them."""

import pytest
import torch

from stages.curvature.squares import TILE_VALUES, active_ranges, add_squared_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("positions", "m", "n"), [(1, 5, 7), (4, 5, 7), (9, 700, 513), (3, 1, 900)])
@pytest.mark.parametrize("zeros", ["none", "padding", "all but the first", "an example", "everything", "in between"])
def test_adds_what_float64_says(zeros: str, positions: int, m: int, n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(6, positions, m, generator=generator).to(dtype)
    right = torch.randn(6, positions, n, generator=generator).to(dtype)
    if zeros == "padding":
        left[1, 2:] = left[4, 1:] = left[5, :1] = 0
    elif zeros == "all but the first":
        left[:, 1:] = 0
    elif zeros == "an example":
        left[3] = 0
    elif zeros == "everything":
        left[:] = 0
    elif zeros == "in between":
        left[:, 1:2] = 0
    before = torch.rand(m, n, generator=generator)
    wanted = before.double()
    for b in range(6):
        wanted += (left[b].double().T @ right[b].double()) ** 2
    total = before.clone()
    add_squared_products(total, left, right, active_ranges(left))
    assert float((total.double() - wanted).norm() / wanted.norm()) < 1e-6
    assert (m * n > TILE_VALUES) == (m == 700)  # both ways through are taken


def test_active_ranges() -> None:
    g = torch.zeros(5, 4, 20)
    g[0] = 1
    g[1, :2] = -1
    g[2, 1, 19] = torch.nan  # not where one would look first
    g[3, 1, 3] = g[3, 3, 12] = 1e-40
    assert active_ranges(g) == [(0, 4), (0, 2), (1, 2), (1, 4), (0, 0)]
