"""Thresholds against sorted magnitudes, exactly."""

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from stages.merging.methods.ties.trimming import kth_largest_magnitude


def threshold(tensors: Sequence[Tensor], keep: int, chunk: int = 37) -> float:
    def chunks() -> Iterator[Tensor]:
        for tensor in tensors:
            yield from tensor.reshape(-1).split(chunk)

    return kth_largest_magnitude(chunks, keep)


def expected(tensors: Sequence[Tensor], keep: int) -> float:
    magnitudes = torch.cat([tensor.reshape(-1) for tensor in tensors]).abs().sort(descending=True).values
    return magnitudes[keep - 1].item() if keep < len(magnitudes) else 0.0


def any_bits(count: int, seed: int) -> Tensor:
    """Finite float32 numbers of all magnitudes, subnormal ones included."""
    bits = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.int64)
    values = bits.to(torch.int32).view(torch.float32)
    return values[values.isfinite()]


normal = torch.randn(500, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "normal": [normal.reshape(20, 25)],
    "small": [normal * 1e-4],
    "all magnitudes": [any_bits(500, seed=1)],
    "subnormal": [normal * 1e-41],
    "many ties": [(normal * 3).round()],
    "one value": [torch.full((300,), -0.1)],
    "zeros": [torch.zeros(200), -torch.zeros(100)],
    "mostly zeros": [normal * (normal > 1)],
    # The same upper 16 bits of the pattern.
    "close": [1 + torch.arange(300) * 2.0**-23],
    "several tensors": [normal[:7], normal[7:400].reshape(3, 131) * 10, torch.zeros(5), normal[400:] * 1e-3],
}


@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS)
def test_is_the_sorted_magnitudes(tensors: list[Tensor]) -> None:
    total = sum(tensor.numel() for tensor in tensors)
    magnitudes = torch.cat([tensor.reshape(-1) for tensor in tensors]).abs()
    for keep in sorted({1, 2, 3, 10, total // 5, total // 2, total - 2, total - 1}):
        found = threshold(tensors, keep)
        assert found == expected(tensors, keep)
        assert (magnitudes > found).sum() < keep <= (magnitudes >= found).sum()


def test_every_rank_of_a_tensor_with_ties() -> None:
    tensor = torch.tensor([0.0, -0.0, 3.0, -3.0, 3.0, 1e-45, -1e-45, 65504.0, -1e38, 1.0])
    for keep in range(1, 10):
        assert threshold([tensor], keep, chunk=3) == expected([tensor], keep)


def test_keeping_nothing_and_everything() -> None:
    assert threshold([normal], 0) == math.inf
    assert threshold([normal], -1) == math.inf
    assert threshold([normal], 500) == 0.0
    assert threshold([normal], 501) == 0.0
    assert threshold([torch.empty(0)], 0) == math.inf
    assert threshold([torch.empty(0)], 1) == 0.0


def test_float64_is_refused_rather_than_rounded() -> None:
    with pytest.raises(TypeError, match="float64"):
        threshold([normal.double()], 3)


def test_tensors_that_are_not_contiguous() -> None:
    matrix = normal.reshape(20, 25).T[::2]
    assert kth_largest_magnitude(lambda: [matrix], 50) == expected([matrix], 50)
