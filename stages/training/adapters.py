"""Adapters by peft: put on a base to be trained, and written."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stages.params.adapters import Ia3, Lora
from stages.running.errors import InputError
from stages.storage import naming
from stages.storage.adapted import AdaptedFiles
from stages.storage.adapters import BASE, adapter_config
from stages.storage.cards import write_json
from stages.storage.checkpoint_files import ADAPTER_CONFIG, MODEL_CARD
from stages.storage.tensors import TensorFiles

if TYPE_CHECKING:
    import peft  # a second, which only they need who train adapters

Model = Any  # a transformers.PreTrainedModel, or peft's around one


def with_adapter(model: Model, settings: Lora | Ia3, base: Path) -> Model:
    """A model with a new adapter on it, a `peft.PeftModel`; the adapter is all that is trained. Torch's seed decides.

    Args:
        model: of the base, with its head.
        settings: the adapter's.
        base: the directory that the model's weights are from; what it lacks, or has otherwise, is trained as a whole.

    Raises:
        InputError: the targets are not in the model, or peft cannot adapt them.
    """
    import peft

    modules = [name for name, _ in model.named_modules()]
    for saved in settings.save:
        if not any(name == saved or name.endswith(f".{saved}") for name in modules):
            raise InputError(f"finetune.adapter.save: the model has no module {saved!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = _config(settings, sorted({*settings.save, *_new_modules(model, base)}) or None)
            config.base_model_name_or_path = base.as_posix()
            return peft.get_peft_model(model, config)
    except ValueError as error:  # what peft makes of targets that the model has none of, or that it cannot adapt
        raise InputError(f"finetune.adapter: {' '.join(str(error).split())[:300]}") from None


def leave_in(dtype: torch.dtype, wrapped: Model) -> None:
    """Turn the weights that are not trained into a type, the one that their files have: they take no more memory."""
    for parameter in wrapped.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _config(settings: Lora | Ia3, saved: list[str] | None) -> "peft.PeftConfig":
    import peft

    if isinstance(settings, Ia3):
        # Peft knows which of its own targets are feed-forward layers.
        named: list[str] | None = [] if settings.targets is not None else None
        return peft.IA3Config(
            target_modules=settings.targets,
            feedforward_modules=settings.feedforward or named,
            modules_to_save=saved,
        )
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha if settings.alpha is not None else 2 * settings.rank,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        modules_to_save=saved,
    )


def _new_modules(model: Model, base: Path) -> set[str]:
    """The modules whose tensors are not the base's: new heads and poolers."""
    files = TensorFiles(base)
    stored = naming.model_names(model, files)
    tied = naming.ties(model)
    body = f"{model.base_model_prefix}."

    def is_new(name: str, tensor: torch.Tensor) -> bool:
        own = stored.get(name) or stored.get(tied.get(name, name))
        if own is None:
            return True
        return not name.startswith(body) and not torch.equal(files.read(own[0]).to(tensor.dtype), tensor)

    parameters = dict(model.named_parameters())
    return {name.rpartition(".")[0] for name, tensor in parameters.items() if is_new(name, tensor.detach())}


def write_adapter(wrapped: Model, base: Path, dtype: torch.dtype, out: Path) -> None:
    """Write a trained adapter, and the configuration of the whole model, into a directory.

    Args:
        wrapped: the model with the adapter on it.
        base: the directory of its base.
        dtype: the type that the base's weights are stored in.
        out: the directory.

    Raises:
        InputError: the adapter's change cannot be told from the files, so nothing could be made of it.
    """
    model = wrapped.get_base_model()
    # Embeddings that are adapted would be written too; they are the base's.
    wrapped.save_pretrained(out, save_embedding_layers=False)
    (out / MODEL_CARD).unlink(missing_ok=True)  # peft's, which tells of nothing but peft
    write_adapter_config(out, base, out)
    write_model_config(model, dtype, out)
    if AdaptedFiles(out, base).untied:
        model.config.get_text_config().tie_word_embeddings = False
        write_model_config(model, dtype, out)


def write_model_config(model: Model, dtype: torch.dtype, out: Path) -> None:
    """Write a model's configuration: its class, which may be another than its base's, and its weights' stored type."""
    model.config.architectures = [type(model).__name__]
    save_config(model, dtype, out)


def save_config(model: Model, dtype: torch.dtype, out: Path) -> None:
    """Write a model's configuration, which says the type that its weights are stored in, whatever that in memory."""
    model.config.dtype = dtype
    model.config.save_pretrained(out)


def write_adapter_config(adapter: Path, base: Path, out: Path) -> None:
    """Write an adapter's configuration into `out`, with the base's directory; lists, which are sets, in one order."""
    config = adapter_config(adapter)
    config = {key: sorted(value) if _is_set(value) else value for key, value in config.items()}
    write_json(out / ADAPTER_CONFIG, config | {BASE: base.as_posix(), "inference_mode": True})


def _is_set(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
