"""Corruptions of images: each takes pixels [H, W, C] of uint8 and gives as many."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from stages.tasks.kinds.image_classification.settings import Corruption

Image = np.ndarray


def corrupt(image: Image, corruptions: Sequence[Corruption], generator: np.random.Generator) -> Image:
    """An image after one corruption after another.

    Args:
        image: [H, W, C], uint8.
        corruptions: what to do.
        generator: what is random comes from it.
    """
    for corruption in corruptions:
        ((name, amount),) = corruption.model_dump(exclude_none=True).items()
        image = CORRUPTIONS[name](image, amount, generator)
    return image


def invert(image: Image, _amount: bool, _generator: np.random.Generator) -> Image:
    """Black becomes white."""
    return 255 - image


def rotate(image: Image, degrees: float, _generator: np.random.Generator) -> Image:
    """The image turned counter-clockwise about its centre, bilinearly; at corners its edge is continued."""
    # ndimage turns the first axis towards the second, and the first one goes down.
    return _pixels(ndimage.rotate(_float(image), degrees, axes=(0, 1), reshape=False, order=1, mode="nearest"))


def translate(image: Image, offset: Sequence[int], _generator: np.random.Generator) -> Image:
    """The image moved [down, right] by whole pixels; what comes in continues its edge."""
    height, width = image.shape[:2]
    rows = np.clip(np.arange(height) - offset[0], 0, height - 1)
    columns = np.clip(np.arange(width) - offset[1], 0, width - 1)
    return image[rows][:, columns]


def contrast(image: Image, factor: float, _generator: np.random.Generator) -> Image:
    """Every value's distance from the mean of its channel, times the factor."""
    mean = image.mean(axis=(0, 1))
    return _pixels(mean + factor * (_float(image) - mean))


def gaussian_noise(image: Image, deviation: float, generator: np.random.Generator) -> Image:
    """Independent noise on every value, of a standard deviation in units of the range, 0 … 255."""
    return _pixels(image + 255 * deviation * generator.standard_normal(image.shape))


def gaussian_blur(image: Image, deviation: float, _generator: np.random.Generator) -> Image:
    """Each channel convolved with a Gaussian, its standard deviation in pixels; at borders the edge is continued."""
    return _pixels(ndimage.gaussian_filter(_float(image), (deviation, deviation, 0), mode="nearest"))


def occlude(image: Image, side: int, generator: np.random.Generator) -> Image:
    """A square of `side` pixels, anywhere inside the image, in the image's mean colour (cut where it is too large)."""
    height, width = image.shape[:2]
    top, left = (int(generator.integers(0, max(length - side, 0) + 1)) for length in (height, width))
    occluded = image.copy()
    occluded[top : top + side, left : left + side] = _pixels(image.mean(axis=(0, 1)))
    return occluded


CORRUPTIONS: dict[str, Callable[[Image, Any, np.random.Generator], Image]] = {
    "invert": invert,
    "rotate": rotate,
    "translate": translate,
    "contrast": contrast,
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
    "occlude": occlude,
}


def _float(image: Image) -> np.ndarray:
    return image.astype(np.float64)


def _pixels(values: np.ndarray) -> Image:
    """The nearest values that a pixel may have."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
