"""Examples of image classification: an image's columns (see `images`, beside this), and `label`, a position."""

from collections.abc import Mapping

import pandas as pd

from stages.tasks.kinds.image_classification.images import corrupted, expanded_columns, read_images
from stages.tasks.kinds.image_classification.settings import ImageClassification
from stages.tasks.labels import LabelReader
from stages.tasks.reading import FileExamples
from stages.tasks.table_files import Table
from stages.tasks.task import Split


class ImageClassificationReader(LabelReader[ImageClassification]):
    """Reads images with their labels; they are corrupted once it is decided which are in which split."""

    example = "image"

    def columns(self, task: ImageClassification) -> list[str] | None:
        """The names of the columns, in which `pixels` stands for as many as an image has."""
        if task.columns is None or task.image.pixels is None:
            return task.columns
        return expanded_columns(task.columns, task.image.pixels)

    def read(self, task: ImageClassification, tables: Mapping[str, Table]) -> dict[str, FileExamples]:
        """File → its examples. Raises `InputError` where an image or label is none."""
        for table in tables.values():
            table.column(task.label)
        return self.labelled(task, tables, {name: read_images(task, table) for name, table in tables.items()})

    def finished(self, task: ImageClassification, examples: pd.DataFrame) -> pd.DataFrame:
        """The examples with corrupted images."""
        return corrupted(examples, task.corruptions, task.split.seed) if task.corruptions else examples

    def card(self, task: ImageClassification, splits: Mapping[Split, pd.DataFrame]) -> dict[str, object]:
        """The examples of each label, and the corruptions."""
        corruptions = [corruption.model_dump(exclude_none=True) for corruption in task.corruptions]
        return {"corruptions": corruptions} | super().card(task, splits)


READER = ImageClassificationReader()
