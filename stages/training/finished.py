"""Finished models: a checkpoint or an adapter that is brought in, not trained here."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from stages.running.errors import InputError
from stages.storage.adapters import BASE, adapter_config
from stages.storage.checkpoint import Checkpoint
from stages.storage.checkpoint_files import (
    ADAPTER_CONFIG,
    ADAPTER_STEM,
    CHECKPOINT_CARD,
    GENERATION_CONFIG,
    config_file,
    is_adapter,
    read_checkpoint_card,
    read_config,
)
from stages.storage.configuration import copy_adapter_configuration, copy_configuration
from stages.storage.digests import verify_contents
from stages.storage.tensors import TensorFiles, fingerprint
from stages.storage.weights import open_weights, verify_checkpoint
from stages.tasks import task_kind
from stages.tasks.data import TaskData
from stages.tasks.encoding import encode
from stages.training.adapters import save_config, write_adapter_config, write_model_config
from stages.training.checkpoint_parts import (
    refuse_adapter,
    refuse_not_finite,
    stored_dtype,
    write_card,
    write_generation,
)


def bring_in(base: Path, task: TaskData, out: Path) -> None:
    """Copy a finished checkpoint, its outputs named after the task's labels, into `out`.

    Raises:
        InputError: it is damaged or no model for the task: a tensor is missing or not finite, its labels are others, or
            it cannot read the task's examples.
    """
    refuse_adapter(base)
    kind = task_kind(task.kind)
    checkpoint = Checkpoint(base)
    checkpoint.verify()
    kind.refuse_other_outputs(checkpoint, task)
    refuse_not_finite(checkpoint.tensors, "fetch or make the checkpoint again")
    model = kind.load_model(base, task.labels)
    _refuse_unreadable(base, task, model)
    copy_configuration(base, out)
    save_config(model, stored_dtype(base), out)
    write_generation(model, base, out)
    checkpoint.tensors.copy_to(out)
    write_card(out, task, model.base_model_prefix, {"method": "brought in", "base": base.name})


def bring_in_adapter(
    adapter: Path, base: Path, task: TaskData, out: Path, base_names: Collection[str] | None = None
) -> None:
    """Copy a finished adapter, with what belongs to its base beside the weights, into `out`.

    Args:
        adapter: its directory.
        base: the directory of its base.
        task: what its model is for.
        out: an empty directory.
        base_names: what its configuration may call the base; None where nothing says it.

    Raises:
        InputError: it is no adapter, or one of another base; it is damaged, or no model for the task.
    """
    kind = task_kind(task.kind)
    if not is_adapter(adapter):
        raise InputError(f"{adapter}: is no PEFT adapter (it has no {ADAPTER_CONFIG}); leave out the model's `adapter`")
    called = adapter_config(adapter).get(BASE)
    if base_names is not None and called not in base_names:
        raise InputError(
            f"{adapter / ADAPTER_CONFIG}: is an adapter of {called!r}, not of {' or '.join(base_names)}; if these are "
            "the same weights, say so by the model's `adapter_of`"
        )
    verify_checkpoint(base)
    verify_contents(adapter)
    tensors = TensorFiles(adapter, ADAPTER_STEM)
    refuse_not_finite(tensors, "fetch or make the adapter again")
    copy_adapter_configuration(base, adapter, out)
    tensors.copy_to(out)
    write_adapter_config(adapter, base, out)
    # The whole model's configuration, by which the adapter is read from then on.
    write_model_config(kind.load_model(base, task.labels, new_head=True), stored_dtype(base), out)
    model = kind.load_model(out, task.labels)
    write_model_config(model, stored_dtype(base), out)
    if not (adapter / GENERATION_CONFIG).is_file():
        write_generation(model, base, out)
    _refuse_other_base(adapter, base, out)
    if (stated := _labelled_by(adapter, base, out)) is not None:
        kind.refuse_other_outputs(stated, task)
    _refuse_unreadable(out, task, model)
    origin = {"method": "brought in", "base": base.name, "adapter": adapter.name}
    if base_names is not None:  # else it may be a path on somebody's machine
        origin["adapter_of"] = str(called)
    write_card(out, task, model.base_model_prefix, origin)


def _refuse_other_base(adapter: Path, base: Path, out: Path) -> None:
    """Raise `InputError` if an adapter comes with a card, and that is of another model than it makes of its base."""
    stated = read_checkpoint_card(adapter).get("fingerprint")
    if stated is not None and stated != fingerprint(open_weights(out)):
        raise InputError(
            f"{adapter / CHECKPOINT_CARD}: is of another model than the adapter makes of {base}; give it the base that "
            "it was trained on"
        )


def _labelled_by(adapter: Path, base: Path, out: Path) -> Checkpoint | None:
    """A brought-in adapter's model as that configuration says it which knows what its outputs are; None if none does.

    It is the adapter's, if it has one. If not, the base's, unless the adapter has a head of its own.
    """
    checkpoint = Checkpoint(out)
    assert checkpoint.adapted is not None
    known = adapter if config_file(adapter).is_file() else base
    if known == base and checkpoint.head() & checkpoint.adapted.adapter.replaced.keys():
        return None
    checkpoint.directory, checkpoint.config = known, read_config(known)
    return checkpoint


def _refuse_unreadable(checkpoint: Path, task: TaskData, model: Any) -> None:
    """Raise `InputError` if a checkpoint's processor makes next to nothing of the task's examples."""
    kind = task_kind(task.kind)
    processor = kind.load_processor(checkpoint)
    kind.refuse_unknown(processor, encode(kind, processor, task.rows("train"), task, model, seed=0), task)
