"""What a statistic of a model is of: all its weights or, of an adapter's model, some of them or the adapter's own."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from stages.params import FisherSettings
from stages.running.errors import InputError
from stages.storage.adapted import AdaptedFiles, OwnFiles
from stages.storage.adapters import adapter_base, adapter_parameters, attach, file_name, has_vectors
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
    return with_own_parameters(checkpoint, task, kind)


def with_own_parameters(checkpoint: Path, task: TaskData, kind: Kind[Any]) -> Model:
    """The model of an adapter's base, with the adapter's own parameters on it, not merged into its weights.

    Raises:
        InputError: the adapter does not fit, or a tensor is neither in its file nor in the base's.
    """
    base = adapter_base(checkpoint)
    own = OwnFiles(checkpoint, base)
    model = kind.load_model(base, task.labels, new_head=True)
    model = attach(model, checkpoint, {name: own.read(name) for name in own.specs})
    _take_values(model, own)
    return model


def _take_values(model: Model, own: OwnFiles) -> None:
    """Give the parameters beside the adapter's layers the values of its files: its own biases and heads, or the base's.

    Raises:
        InputError: neither has one, so that its values would be random.
    """
    layers = adapter_parameters(model)
    for name, parameter in model.named_parameters():
        if name in layers or ".original_module." in name:
            continue
        plain = name.replace(".base_layer.", ".").replace(".token_adapter.", ".")
        stored = file_name(name)
        values = own.read(stored) if stored in own.specs else own.whole.base_value(plain)
        if values is None or values.shape != parameter.shape:
            raise InputError(f"{own.file}: neither the adapter nor its base has the model's tensor {plain}")
        parameter.data.copy_(values)


def _is_own(name: str, files: OwnFiles) -> bool:
    """Whether an adapter's file has the model's parameter `name`, beyond what some keep of their base."""
    return file_name(name) in files.specs and not name.endswith(".base_layer.weight")


def measured(model: Model, files: TensorFiles, settings: FisherSettings) -> Collection[str] | None:
    """The names of the model's parameters that the statistic is of; None for all of them.

    Args:
        model: `measured_model`.
        files: `measured_files`.
        settings: which.
    """
    if isinstance(files, OwnFiles):
        return [name for name, _ in model.named_parameters() if _is_own(name, files)]
    if isinstance(files, AdaptedFiles) and settings.of != "weights":
        return [name for name, _ in model.named_parameters() if name in files.changed]
    return None
