"""What a statistic of a model is of: all its weights or, of an adapter's model, some of them or the adapter's own."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from stages.params import FisherSettings
from stages.storage.adapted import AdaptedFiles, OwnFiles
from stages.storage.adapters import adapter_base, adapter_parameters, attach, has_vectors
from stages.storage.checkpoint_files import is_adapter
from stages.storage.tensors import TensorFiles
from stages.tasks.data import TaskData
from stages.tasks.kind import Kind
from stages.tasks.loading import Model


def is_of_adapter(checkpoint: Path, settings: FisherSettings) -> bool:
    """Whether the statistic is of an adapter's own parameters."""
    if not is_adapter(checkpoint):
        return False
    return settings.of == "adapter" or (settings.of is None and has_vectors(checkpoint))


def measured_files(checkpoint: Path, settings: FisherSettings) -> TensorFiles:
    """The tensors that the statistic is of, and more."""
    if not is_adapter(checkpoint):
        return TensorFiles(checkpoint)
    base = adapter_base(checkpoint)
    return OwnFiles(checkpoint, base) if is_of_adapter(checkpoint, settings) else AdaptedFiles(checkpoint, base)


def measured_model(checkpoint: Path, task: TaskData, kind: Kind[Any], settings: FisherSettings) -> Model:
    """The model in a checkpoint directory, with an adapter in its weights or, if the statistic is of that, on them."""
    if not is_of_adapter(checkpoint, settings):
        return kind.load_model(checkpoint, task.labels)
    base = adapter_base(checkpoint)
    own = OwnFiles(checkpoint, base)
    model = kind.load_model(base, task.labels, new_head=True)
    return attach(model, checkpoint, {name: own.read(name) for name in own.specs})


def measured(model: Model, files: TensorFiles, settings: FisherSettings) -> Collection[str] | None:
    """The names of the model's parameters that the statistic is of; None for all of them.

    Args:
        model: `measured_model`.
        files: `measured_files`.
        settings: which.
    """
    if isinstance(files, OwnFiles):
        return list(adapter_parameters(model))
    if isinstance(files, AdaptedFiles) and settings.of != "weights":
        return [name for name, _ in model.named_parameters() if name in files.changed]
    return None
