"""Image classification: one label per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from stages.running.errors import InputError
from stages.storage.checkpoint_files import IMAGE_PROCESSOR, read_config
from stages.tasks.classifier import Classifier
from stages.tasks.data import TaskData
from stages.tasks.kind import Encoded
from stages.tasks.kinds.image_classification.images import COLUMNS, image, with_channels
from stages.tasks.kinds.image_classification.settings import ImageClassification
from stages.tasks.loading import Model
from stages.tasks.prediction import Collator


@dataclass(frozen=True)
class ImageProcessor:
    """Makes a model's input of images, as its checkpoint's preprocessor_config.json says.

    Attributes:
        checkpoint: where it comes from.
        steps: transformers' own, which resizes, crops, scales and normalises with Pillow and NumPy.
        channels: as many as the model reads: grey images become coloured for it, or coloured ones grey.
        size: [H, W] that the model reads; None if it reads any.
    """

    checkpoint: Path
    steps: Any
    channels: int
    size: tuple[int, int] | None

    def __call__(self, found: Sequence[np.ndarray]) -> torch.Tensor:
        """The model's input, float32 [B, channels, H, W], of images [H, W, C] of uint8."""
        converted = [with_channels(image, self.channels) for image in found]
        # By name, since what has three rows could be taken for three channels.
        return self.steps(converted, input_data_format="channels_last", return_tensors="pt")["pixel_values"]

    def check(self, found: Sequence[np.ndarray]) -> None:
        """Raise `InputError` unless all images come out at the one size that the model reads."""
        samples = {image.shape: image for image in found}.values()
        sizes = {tuple(self([image]).shape[2:]) for image in samples}
        if len(sizes) > 1 or (self.size is not None and sizes != {self.size}):
            listed = ", ".join(f"{height} × {width}" for height, width in sorted(sizes))
            wanted = "one size" if self.size is None else f"{self.size[0]} × {self.size[1]}"
            raise InputError(
                f"{self.checkpoint / IMAGE_PROCESSOR}: makes images of {listed} pixels, but the model needs "
                f"{wanted}; change its `size`, or the `image.size` of the task"
            )

    def save_pretrained(self, directory: Path) -> None:
        """Write preprocessor_config.json."""
        self.steps.save_pretrained(directory)


class ImageClassificationKind(Classifier[ImageProcessor]):
    """Classifiers of images. The processor brings every image to the model's size, so that all are alike."""

    settings = ImageClassification
    architecture = AutoModelForImageClassification

    def load_processor(self, checkpoint: Path) -> ImageProcessor:
        """The image processor in a checkpoint directory.

        Raises:
            InputError: there is none that can be loaded.
        """
        try:
            # The backend by name: with torchvision installed, another would give other bits.
            steps = AutoImageProcessor.from_pretrained(
                checkpoint, backend="pil", trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # whatever transformers makes of broken files
            raise InputError(
                f"{checkpoint}: its image processor cannot be loaded: {' '.join(str(error).split())[:400]}"
            ) from None
        config = read_config(checkpoint)
        size = config.get("image_size")
        square = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else None
        return ImageProcessor(checkpoint, steps, config.get("num_channels", 3), square)

    def encode(
        self, processor: ImageProcessor, frame: pd.DataFrame, task: TaskData, model: Model, seed: int
    ) -> Encoded:
        """The columns of the images as the task has them, see `images`, and `labels`."""
        return {column: frame[column].tolist() for column in COLUMNS} | {"labels": frame["label"].tolist()}

    def check_encoded(self, processor: ImageProcessor, encoded: Mapping[str, Sequence[Any]]) -> None:
        """Raise `InputError` if the images do not come out at the one size that the model reads."""
        shapes = set(zip(*(encoded[name] for name in COLUMNS[1:]), strict=True))
        processor.check([np.zeros(shape, dtype=np.uint8) for shape in sorted(shapes)])

    def collator(self, processor: ImageProcessor, model: Model) -> Collator:
        """Makes the model's input of a list of examples."""

        def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return {
                "pixel_values": processor([image(*(row[column] for column in COLUMNS)) for row in rows]),
                "labels": torch.tensor([row["labels"] for row in rows]),
            }

        return collate


KIND = ImageClassificationKind()
