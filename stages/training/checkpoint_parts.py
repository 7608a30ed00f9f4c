"""What is written beside a model's weights, trained or finished, and what its weights must be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from stages.running.errors import InputError
from stages.running.placement import WEIGHTS
from stages.storage.cards import write_json
from stages.storage.checkpoint_files import (
    CHECKPOINT_CARD,
    GENERATION_CONFIG,
    checkpoint_card,
    is_adapter,
    read_config,
)
from stages.storage.outputs import copy_files
from stages.storage.tensors import TensorFiles, fingerprint
from stages.storage.weights import open_weights
from stages.tasks.data import TaskData


def stored_dtype(base: Path) -> torch.dtype:
    """The type that a base's weights are stored in, if it is one for all of them; else float32."""
    files = TensorFiles(base)
    found = {spec.dtype for spec in files.specs.values() if spec.is_floating}
    return getattr(torch, found.pop()) if len(found) == 1 else WEIGHTS


def refuse_adapter(base: Path) -> None:
    """Raise `InputError` if a model's base is an adapter, which is a model together with a base of its own."""
    if is_adapter(base):
        raise InputError(
            f"{base}: is a PEFT adapter, and no base; name it as the model's `adapter`, and its own base as `base`"
        )


def refuse_not_finite(tensors: TensorFiles, remedy: str) -> None:
    """Raise `InputError` if a tensor has a NaN or an infinite entry, with what is to be done."""
    for name, spec in tensors.specs.items():
        if spec.is_floating and not tensors.read(name).isfinite().all():
            raise InputError(f"{tensors.file}: tensor {name} has NaN or infinite entries: {remedy}")


def write_generation(model: Any, base: Path, out: Path) -> None:
    """Write how a checkpoint writes texts: as its base says, in a file of its own or, in older ones, in config.json.

    transformers saves the first as it understands it, and config.json without the second.
    """
    if (base / GENERATION_CONFIG).is_file():
        copy_files([GENERATION_CONFIG], base, out)
    elif model.can_generate():
        transformers.GenerationConfig.from_model_config(read_config(base)).save_pretrained(out)


def write_card(out: Path, task: TaskData, base_model_prefix: str, origin: Mapping[str, Any]) -> None:
    """Write a checkpoint's card, which binds it to its weights, labels and task."""
    card = checkpoint_card(fingerprint(open_weights(out)), base_model_prefix, task.labels, task.name, origin)
    write_json(out / CHECKPOINT_CARD, card)
