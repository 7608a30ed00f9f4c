"""The CPU's kernel against float64: whole blocks, blocks at the edges, positions left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from stages.curvature.fused_cpu import COLUMNS, ROWS, add_squared_products_on_cpu
from stages.curvature.squares import TILE_VALUES, add_squared_products

SIZES = [
    (ROWS, COLUMNS),
    (3 * ROWS, 2 * COLUMNS),
    (1, 1),
    (ROWS - 1, COLUMNS),
    (ROWS, COLUMNS - 1),
    (5 * ROWS + 1, 3 * COLUMNS + 5),
    (2, 0),
    (0, 2),
]


@pytest.mark.parametrize(("m", "n"), SIZES)
@pytest.mark.parametrize("ranges", ["all", "some", "none"])
@pytest.mark.parametrize("positions", [1, 6])
def test_adds_what_float64_says(m: int, n: int, ranges: str, positions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(3, positions, m, generator=generator)
    right = torch.randn(3, positions, n, generator=generator)
    taken = {"all": [(0, positions)] * 3, "some": [(0, 0), (positions // 2, positions), (0, 1)], "none": [(0, 0)] * 3}
    before = torch.rand(m, n, generator=generator)
    wanted = before.double()
    for b, (start, stop) in enumerate(taken[ranges]):
        wanted += (left[b, start:stop].double().T @ right[b, start:stop].double()) ** 2
    total = before.clone()
    add_squared_products_on_cpu(total, left, right, taken[ranges])
    torch.testing.assert_close(total.double(), wanted, rtol=1e-6, atol=1e-6)


def test_nothing_is_written_beside_the_result() -> None:
    around = torch.zeros(ROWS + 3, COLUMNS + 5)
    left, right = torch.randn(2, 3, ROWS + 1), torch.randn(2, 3, COLUMNS + 1)
    add_squared_products_on_cpu(around[1:-1, 2:-2], left, right, [(0, 3), (0, 3)])
    wanted = (left.double().transpose(1, 2) @ right.double()).square().sum(0)
    torch.testing.assert_close(around[1:-1, 2:-2].double(), wanted, rtol=1e-6, atol=1e-6)
    around[1:-1, 2:-2] = 0
    assert not around.any()


def test_no_example() -> None:
    total = torch.ones(ROWS, COLUMNS)
    add_squared_products_on_cpu(total, torch.zeros(0, 3, ROWS), torch.zeros(0, 3, COLUMNS), [])
    assert bool((total == 1).all())


def test_any_number_of_threads_gives_the_same_bits() -> None:
    left, right = torch.randn(5, 7, 90), torch.randn(5, 7, 300)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(torch.zeros(90, 300))
            add_squared_products_on_cpu(results[-1], left, right, [(0, 7)] * 5)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_large_results_in_any_layout(layout: str) -> None:
    """Whose rows' values lie apart is left to torch's products."""
    m, n = 520, 530
    assert m * n > TILE_VALUES
    left, right = torch.randn(2, 5, m), torch.randn(2, 5, n)
    total = torch.zeros(m, n) if layout == "rows" else torch.zeros(n, m).t()
    with profile(activities=[ProfilerActivity.CPU]) as events:
        add_squared_products(total, left, right, None)
    assert ("aten::mm" in {event.key for event in events.key_averages()}) == (layout == "columns")
    wanted = (left.double().transpose(1, 2) @ right.double()).square().sum(0)
    assert float((total.double() - wanted).norm() / wanted.norm()) < 1e-6


def test_cpus_with_shorter_vectors(tmp_path: Path) -> None:
    """The same tests where the CPU is said to have no AVX-512 (elsewhere, once more)."""
    shorter = "from llvmlite import binding; binding.get_host_cpu_features = binding.FeatureMap; import sys, pytest; "
    tests = [f"{__file__}::{test.__name__}" for test in (test_adds_what_float64_says, test_no_example)]
    subprocess.run(
        [sys.executable, "-c", f"{shorter} sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{tests}]))"],
        check=True,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
    )
