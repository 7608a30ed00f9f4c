"""Images in tables: as a source has them, and as a prepared task has them.

A prepared task has an image in four columns: `pixels`, its bytes row by row, channel by channel, from 0 to 255; and its
`height`, `width` and `channels`, 1 (grey) or 3 (red, green, blue).
"""

import io
from collections.abc import Hashable, Iterator, Sequence
from hashlib import sha256
from math import prod
from typing import Any

import numpy as np
import pandas as pd

from stages.running.errors import InputError
from stages.tasks.kinds.image_classification.corruptions import corrupt
from stages.tasks.kinds.image_classification.settings import Corruption, ImageClassification, Images
from stages.tasks.table_files import Table

COLUMNS = ("pixels", "height", "width", "channels")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


def images(frame: pd.DataFrame) -> Iterator[np.ndarray]:
    """The images of a prepared task's rows, [H, W, C] of uint8 each, read-only."""
    yield from map(image, *(frame[column] for column in COLUMNS))


def image(pixels: bytes, height: int, width: int, channels: int) -> np.ndarray:
    """An image of a prepared task, [H, W, C] of uint8, read-only."""
    return np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, channels)


def image_columns(found: Sequence[np.ndarray], index: pd.Index) -> pd.DataFrame:
    """The columns that a prepared task has of these images, [H, W, C] of uint8 each."""
    columns: dict[str, Any] = {"pixels": pd.Series([image.tobytes() for image in found], index, dtype=object)}
    for axis, name in enumerate(("height", "width", "channels")):
        columns[name] = pd.Series([image.shape[axis] for image in found], index, dtype="int64")
    return pd.DataFrame(columns, index)


def read_images(task: ImageClassification, table: Table) -> pd.DataFrame:
    """The images of a source's table, as a prepared task has them.

    Raises:
        InputError: a column is missing or too many, or an image cannot be read.
    """
    if task.image.column is None:
        found = _from_pixels(task, table)
    else:
        found = [_decoded(cell, row, table, task.image) for row, cell in table.column(task.image.column).items()]
    if task.image.size is not None:
        found = [resized(image, *task.image.size) for image in found]
    return image_columns(found, table.rows.index)


def corrupted(frame: pd.DataFrame, corruptions: Sequence[Corruption], seed: int) -> pd.DataFrame:
    """A prepared task's rows with corrupted images; what is random depends on the seed and the image alone."""
    found = []
    for image in images(frame):
        digest = np.frombuffer(sha256(image.tobytes()).digest(), dtype="<u4")
        found.append(corrupt(image, corruptions, np.random.default_rng([seed, *digest.tolist()])))
    return frame.assign(**image_columns(found, frame.index))


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image [H, W, C] at another size, bilinearly."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, -1)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An image [H, W, C] in grey (one channel: luma, ITU-R BT.601) or in colour (three)."""
    from PIL import Image

    if image.shape[-1] == channels:
        return image
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    return np.repeat(image, channels, axis=-1)


def _from_pixels(task: ImageClassification, table: Table) -> list[np.ndarray]:
    """The images of a table with a pixel a column."""
    assert task.image.pixels is not None
    height, width, channels = (*task.image.pixels, 1)[:3]
    columns = [column for column in table.rows.columns if column != task.label]
    if len(columns) != height * width * channels:
        raise InputError(
            f"{table.file}: has {len(columns)} columns beside the label's, but an image of {task.image.pixels} has "
            f"{height * width * channels} pixels"
        )
    values = table.rows[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~((values >= 0) & (values <= 255) & (values == np.floor(values)))  # what is no number is bad too
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value = str(table.rows[columns[column]].iloc[row])[:80]
        reason = f"pixel {column + 1} = {value!r} is no whole number from 0 to 255"
        raise table.refusal(table.rows.index[row], reason)
    return list(values.astype(np.uint8).reshape(-1, height, width, channels))


def _decoded(cell: object, row: Hashable, table: Table, where: Images) -> np.ndarray:
    """The image in a cell: encoded bytes, or a mapping that has them."""
    from PIL import Image, ImageOps

    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise table.refusal(row, f"{where.column} has no bytes of an image")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.mode.startswith(("I", "F")):
                raise table.refusal(
                    row, f"{where.column} has more than 8 bits a channel, which images here cannot have"
                )
            mode = "L" if picture.mode in ("1", "L") else "RGB"
            upright = ImageOps.exif_transpose(picture).convert(mode)
    except InputError:
        raise
    except Exception as error:  # whatever Pillow makes of what is no image, or of one that would fill the memory
        reason = " ".join(str(error).split())[:200]
        raise table.refusal(row, f"{where.column} cannot be read as {', '.join(FORMATS)}: {reason}") from None
    return np.asarray(upright).reshape(upright.height, upright.width, -1)


def expanded_columns(names: Sequence[str], pixels: Sequence[int]) -> list[str]:
    """Names for the columns of a table without a header: `pixels` stands for one a value of an image."""
    values = [f"pixel {number}" for number in range(1, prod(pixels) + 1)]
    place = names.index("pixels")
    return [*names[:place], *values, *names[place + 1 :]]
