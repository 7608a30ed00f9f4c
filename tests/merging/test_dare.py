"""DARE against the formula in float64, and the masks it is given."""

import numpy as np
import pytest
import torch

from stages.merging.methods.dare.rule import dare, drop_mask, mask_generator
from stages.merging.methods.task_arithmetic.rule import task_arithmetic
from tests.merging.models import DTYPES, array, assert_close, random_tensors

λ = [0.5, 1.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.7])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_formula(dtype: torch.dtype, scale: float, density: float) -> None:
    base, *values = random_tensors(3, (20, 30), dtype, seed=0)
    masks = [drop_mask(mask_generator(0, model, "w"), 600, density).reshape(20, 30) for model in "ab"]
    vectors = [array(mask) * (array(value) - array(base)) for mask, value in zip(masks, values, strict=True)]
    expected = array(base) + scale * (0.25 * vectors[0] + 0.75 * vectors[1]) / density
    assert_close(dare(base, values, λ, masks, density, scale), expected)


def test_its_expectation_is_task_arithmetic() -> None:
    base, *values = random_tensors(3, (50,), torch.float64, seed=0)
    generators = [mask_generator(0, model, "w") for model in "ab"]
    draws = torch.stack(
        [dare(base, values, λ, [drop_mask(g, 50, 0.3) for g in generators], 0.3, 0.8) for _ in range(4000)]
    )
    error = (draws.mean(0) - task_arithmetic(base, values, λ, 0.8)) / (draws.std(0) / 4000**0.5 + 1e-12)
    assert error.abs().max() < 4.5


def test_what_all_drop_is_the_base() -> None:
    base, *values = random_tensors(3, (50,), torch.float32, seed=0)
    nothing = torch.zeros(50, dtype=torch.bool)
    assert torch.equal(dare(base, values, λ, [nothing, nothing], 0.2, 0.8), base)


@pytest.mark.parametrize("sizes", [[1000, 1], [2, 998, 1], [2] * 500 + [1], [64] * 15 + [40, 1], [0, 500, 501]])
def test_a_mask_drawn_in_chunks_is_the_mask_drawn_at_once(sizes: list[int]) -> None:
    whole = drop_mask(mask_generator(3, "tweets", "w"), 1001, 0.4)
    generator = mask_generator(3, "tweets", "w")
    assert torch.equal(torch.cat([drop_mask(generator, size, 0.4) for size in sizes]), whole)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.37, 0.5, 1 - 1e-7, 1.0])
def test_density(density: float) -> None:
    count = 400_000
    mask = drop_mask(mask_generator(0, "a", "b"), count, density)
    assert mask.dtype == torch.bool
    assert mask.shape == (count,)
    spread = (density * (1 - density) / count) ** 0.5
    assert abs(mask.double().mean().item() - density) <= 4 * spread + 1e-6


def test_masks_are_independent_of_each_other() -> None:
    keys = [(0, "a", "b"), (1, "a", "b"), (0, "c", "b"), (0, "a", "c"), (0, "ab", ""), (0, "", "ab"), (0, 'a", "b', "")]
    masks = np.stack([drop_mask(mask_generator(*key), 20_000, 0.5).numpy() for key in keys])
    assert np.abs(np.corrcoef(masks) - np.eye(len(keys))).max() < 0.04


def test_masks_stay_the_same_from_version_to_version() -> None:
    mask = drop_mask(mask_generator(0, "tweets", "bert.embeddings.word_embeddings.weight"), 24, 0.5)
    assert "".join(map(str, mask.int().tolist())) == "110001001000100010010111"
