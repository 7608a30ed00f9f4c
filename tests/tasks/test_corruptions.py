"""Corruptions of images, against what they mean."""

from typing import Any

import numpy as np
import pytest
from scipy.signal import convolve2d

from stages.tasks.kinds.image_classification.corruptions import CORRUPTIONS, corrupt
from stages.tasks.kinds.image_classification.settings import Corruption

EACH: list[dict[str, Any]] = [
    {"invert": True},
    {"rotate": 30.0},
    {"translate": [2, -1]},
    {"contrast": 0.5},
    {"gaussian_noise": 0.1},
    {"gaussian_blur": 1.0},
    {"occlude": 3},
]


def some_image(height: int = 9, width: int = 9, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)


def corrupted(image: np.ndarray, *corruptions: dict[str, Any], seed: int = 0) -> np.ndarray:
    changes = [Corruption.model_validate(corruption) for corruption in corruptions]
    return corrupt(image, changes, np.random.default_rng(seed))


def test_there_is_a_function_for_each() -> None:
    assert CORRUPTIONS.keys() == Corruption.model_fields.keys() == {name for one in EACH for name in one}


@pytest.mark.parametrize("corruption", EACH, ids=lambda corruption: next(iter(corruption)))
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_seed_gives_the_same_pixels_of_the_same_form(corruption: dict[str, Any], channels: int) -> None:
    image = some_image(7, 10, channels)
    before = image.copy()
    found = corrupted(image, corruption)
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    assert (image == before).all()
    assert (found != image).any()
    assert (found == corrupted(image, corruption)).all()


def test_inverting_twice_is_nothing() -> None:
    assert (corrupted(some_image(), {"invert": True}) == 255 - some_image()).all()
    assert (corrupted(some_image(), {"invert": True}, {"invert": True}) == some_image()).all()


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_quarter_turn_is_numpys_which_is_counter_clockwise(turns: int) -> None:
    found = corrupted(some_image(), {"rotate": 90.0 * turns})
    assert (found == np.rot90(some_image(), turns)).all()


def test_rotation_continues_the_edge() -> None:
    white = np.full((9, 9, 1), 255, dtype=np.uint8)
    assert (corrupted(white, {"rotate": 45.0}) == white).all()


def test_translation_is_down_and_right() -> None:
    image = some_image()
    found = corrupted(image, {"translate": [2, -1]})
    assert (found[2:, :-1] == image[:-2, 1:]).all()
    assert (found[:2, :-1] == image[:1, 1:]).all()
    assert (corrupted(image, {"translate": [99, 0]}) == image[:1]).all()


def test_contrast_scales_the_distance_from_each_channels_mean() -> None:
    image = some_image(channels=3)
    mean = image.reshape(-1, 3).mean(axis=0)
    found = corrupted(image, {"contrast": 0.25}).astype(float)
    assert np.abs(found - (mean + 0.25 * (image - mean))).max() <= 0.5 + 1e-9
    assert np.abs(corrupted(image, {"contrast": 0.0}) - mean).max() <= 0.5 + 1e-9
    wanted = np.clip(mean + 100 * (image - mean), 0, 255)
    assert np.abs(corrupted(image, {"contrast": 100.0}) - wanted).max() <= 0.5 + 1e-9


def test_noise_has_its_standard_deviation_in_units_of_the_range() -> None:
    grey = np.full((100, 100, 1), 128, dtype=np.uint8)
    difference = corrupted(grey, {"gaussian_noise": 0.1}).astype(float) - 128
    assert difference.std() == pytest.approx(25.5, rel=0.03)
    assert abs(difference.mean()) < 1
    assert (corrupted(grey, {"gaussian_noise": 0.1}, seed=1) - 128.0 != difference).any()


def test_blur_is_a_convolution_with_a_gaussian() -> None:
    image = some_image(channels=3)
    offsets = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (offsets / 1.0) ** 2)
    kernel /= kernel.sum()
    for channel in range(3):
        padded = np.pad(image[..., channel].astype(float), 4, mode="edge")
        wanted = convolve2d(padded, np.outer(kernel, kernel), mode="valid")
        found = corrupted(image, {"gaussian_blur": 1.0})[..., channel]
        assert np.abs(found - wanted).max() <= 0.5 + 1e-9


def test_occlusion_is_one_square_inside_the_image() -> None:
    image = np.zeros((9, 9, 1), dtype=np.uint8)
    image[4, 4] = 255
    image[0] = 200
    places = set()
    for seed in range(40):
        found = corrupted(image, {"occlude": 3}, seed=seed)
        rows, columns = np.nonzero(found[..., 0] == round(float(image.mean())))[:2]
        assert len(rows) == 9
        assert np.ptp(rows) == np.ptp(columns) == 2
        places.add((rows.min(), columns.min()))
    assert len(places) > 15
    assert len(np.unique(corrupted(image, {"occlude": 99}))) == 1


def test_they_are_done_in_order() -> None:
    image = some_image()
    moved_first = corrupted(image, {"translate": [3, 0]}, {"rotate": 90.0})
    assert (moved_first == np.rot90(corrupted(image, {"translate": [3, 0]}))).all()
    assert (moved_first != corrupted(image, {"rotate": 90.0}, {"translate": [3, 0]})).any()
