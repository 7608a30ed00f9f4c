"""Examples of image classification: an image's columns (see `images`, beside this), and `label`, a position."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from stages.tasks.arrow import frames, temporary_rows
from stages.tasks.kinds.image_classification.images import corrupted, expanded_columns, read_images
from stages.tasks.kinds.image_classification.settings import ImageClassification
from stages.tasks.labels import LabelReader
from stages.tasks.reading import SomeExamples
from stages.tasks.table_files import TableFile
from stages.tasks.task import Split

if TYPE_CHECKING:  # its import takes a third of a second
    from datasets import Dataset


class ImageClassificationReader(LabelReader[ImageClassification]):
    """Reads images with their labels; they are corrupted once it is decided which are in which split."""

    example = "image"

    def columns(self, task: ImageClassification) -> list[str] | None:
        """The names of the columns, in which `pixels` stands for as many as an image has."""
        if task.columns is None or task.image.pixels is None:
            return task.columns
        return expanded_columns(task.columns, task.image.pixels)

    def read(self, task: ImageClassification, files: Mapping[str, TableFile]) -> dict[str, Iterable[SomeExamples]]:
        """File → its examples. Raises `InputError` where an image or label is none."""
        return self.labelled(task, files, partial(read_images, task))

    def finished(self, task: ImageClassification, rows: "Dataset") -> "Dataset":
        """The examples with corrupted images."""
        if not task.corruptions:
            return rows
        return temporary_rows(corrupted(frame, task.corruptions, task.split.seed) for frame in frames(rows))

    def card(self, task: ImageClassification, splits: "Mapping[Split, Dataset]") -> dict[str, object]:
        """The examples of each label, and the corruptions."""
        corruptions = [corruption.model_dump(exclude_none=True) for corruption in task.corruptions]
        return {"corruptions": corruptions} | super().card(task, splits)


READER = ImageClassificationReader()
