"""What the files in a checkpoint's directory are called, its config.json and its card.

No other package of `stages` names these files. Tokenizers' files are transformers' own matter, and the vocabularies'
(`stages.merging.vocabulary`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.running.errors import InputError
from stages.storage.cards import FORMAT_VERSION, read_card, read_json, refuse_pointer

CHECKPOINT_CARD = "checkpoint.json"  # what the checkpoint is and how it was made
MODEL_CARD = "README.md"  # the same for people
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"  # what makes a directory a PEFT adapter's
ADAPTER_STEM = "adapter_model"  # of an adapter's own weights
GENERATION_CONFIG = "generation_config.json"  # how the model writes texts, if it is one that does
IMAGE_PROCESSOR = "preprocessor_config.json"
STEM = "model"  # of the weights
HEADS = "heads"  # a merge's directory of its models' own heads, a file each
WEIGHTS = f"{STEM}*.safetensors"
ADAPTER_WEIGHTS = f"{ADAPTER_STEM}*.safetensors"
ADAM = "adam"  # stem of the file with the optimizer's second moments, beside the weights


def config_file(directory: Path) -> Path:
    """Where a checkpoint's configuration is."""
    return directory / CONFIG


def read_config(directory: Path) -> dict[str, Any]:
    """A checkpoint's configuration.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    file = config_file(directory)
    if not file.is_file():
        raise InputError(f"{directory}: no checkpoint here (no {CONFIG})")
    refuse_pointer(file)
    return read_json(file)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter, which is a model together with its base."""
    return (directory / ADAPTER_CONFIG).is_file()


def has_weights(directory: Path) -> bool:
    """Whether there are any weights in a form that is read."""
    return any(directory.glob("*.safetensors"))


def read_checkpoint_card(directory: Path) -> dict[str, Any]:
    """The card in a checkpoint's directory; empty where there is none, as in one that this pipeline did not make.

    Raises:
        InputError: it cannot be read, or its origin is no object.
    """
    file = directory / CHECKPOINT_CARD
    card = read_card(file) if file.is_file() else {}
    if not isinstance(card.get("origin", {}), dict):
        raise InputError(f"{file}: its origin is no object; make the checkpoint again")
    return card


def own_card(directory: Path) -> dict[str, Any]:
    """The card of a checkpoint that this pipeline made. Raises `InputError` if there is none, or it has no origin."""
    card = read_json(directory / CHECKPOINT_CARD)
    if not isinstance(card.get("origin"), dict):
        raise InputError(f"{directory / CHECKPOINT_CARD}: does not say how the checkpoint was made; make it again")
    return card


def checkpoint_card(
    fingerprint: str,
    base_model_prefix: str | None,
    outputs: Sequence[str] | None,
    task: str | None,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """A checkpoint's card, to be written as `CHECKPOINT_CARD`.

    Args:
        fingerprint: of its weights.
        base_model_prefix: what the body's parameter names begin with, if that is known.
        outputs: what the model's outputs are called, in their order, if that is known; empty where they have no names.
        task: the one it is for, if that is known.
        origin: how it was made.
    """
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "base_model_prefix": base_model_prefix,
        "labels": None if outputs is None else list(outputs),
        "task": task,
        "origin": dict(origin),
    }
