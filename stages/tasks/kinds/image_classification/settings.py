"""Image classification in params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.running.section import Section
from stages.tasks.classification import Classification

Positive = Annotated[int, Field(ge=1, le=100_000)]


class Images(Section):
    """Where a table has its images: in one `column` or in `pixels`, exactly one of the two.

    column: of encoded images (the bytes of a PNG, JPEG, WebP or BMP file), or of Hugging Face's {bytes, path}.
    pixels: [height, width] or [height, width, channels]: all columns but the label's are an image's pixels, 0 to 255,
        row by row. In `columns`, the name `pixels` stands for all of them.
    size: [height, width] in pixels that every image is brought to; without it, images keep their sizes.
    """

    column: str | None = None
    pixels: Annotated[list[Positive], Field(min_length=2, max_length=3)] | None = None
    size: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "Images":
        if (self.column is None) == (self.pixels is None):
            raise ValueError("give exactly one of column, pixels")
        if self.pixels is not None and self.pixels[2:] not in ([], [1], [3]):
            raise ValueError(f"`pixels`: an image has 1 or 3 channels, not {self.pixels[2]}")
        return self


class Corruption(Section):
    """A change of every image, one of these; `corruptions.py`, beside this, says what each does.

    invert: black becomes white.
    rotate: by so many degrees, counter-clockwise.
    translate: by [down, right] pixels.
    contrast: distances from the image's mean are multiplied by this.
    gaussian_noise: its standard deviation, where the pixels' range is 1.
    gaussian_blur: the kernel's standard deviation, in pixels.
    occlude: the side of a square somewhere in the image, in pixels.
    """

    invert: Literal[True] | None = None
    rotate: float | None = Field(default=None, ge=-360, le=360)
    translate: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    contrast: float | None = Field(default=None, ge=0, le=100)
    gaussian_noise: float | None = Field(default=None, gt=0, le=10)
    gaussian_blur: float | None = Field(default=None, gt=0, le=1000)
    occlude: Positive | None = None

    @model_validator(mode="after")
    def _one_change(self) -> "Corruption":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"a corruption is exactly one of {', '.join(type(self).model_fields)}")
        return self


class ImageClassification(Classification):
    """One label per image.

    image: where the images are.
    corruptions: changes of all images, in this order, once it is decided which are in which split.
    """

    kind: Literal["image-classification"] = "image-classification"
    image: Images
    corruptions: list[Corruption] = Field(default_factory=list)

    @model_validator(mode="after")
    def _usable_columns(self) -> "ImageClassification":
        if self.image.column == self.label:
            raise ValueError("`image.column` and `label` must be different columns")
        if self.image.pixels and self.columns is not None and self.columns.count("pixels") != 1:
            raise ValueError("`columns` must have `pixels` once, for all of an image's columns")
        return self
