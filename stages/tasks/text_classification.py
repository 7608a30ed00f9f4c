"""Text classification: one label per text (or pair of texts)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.artifacts import read_json
from stages.errors import InputError
from stages.tasks.data import TaskData

LIKELIHOOD = "categorical"
PREDICTION_BATCH = 64

Tokenizer = Any  # transformers has no common base of fast and slow tokenizers that type checkers understand
Model = Any


def load_model(
    checkpoint: Path, labels: Sequence[str], *, new_head: bool = False, head: Mapping[str, torch.Tensor] | None = None
) -> Model:
    """The classifier in a checkpoint directory, in float32 on the CPU.

    Args:
        checkpoint: safetensors weights and config.json.
        labels: label names, in the order of the outputs.
        new_head: the head may be missing and is then initialised at random (a base model), and so may the pooler before
            it (a masked-LM model).
        head: tensors to use in place of the checkpoint's head, by their names.

    Raises:
        InputError: the checkpoint cannot be read, lacks a tensor, or has one of another shape than its config says.
    """
    names = dict(enumerate(labels))
    config = {"num_labels": len(labels), "id2label": names, "label2id": {name: place for place, name in names.items()}}
    model = pretrained(
        AutoModelForSequenceClassification,
        "a classifier",
        checkpoint,
        config,
        headless=bool(new_head or head),
        poolerless=new_head,
    )
    if head is not None:
        try:
            unexpected = model.load_state_dict(dict(head), strict=False).unexpected_keys
        except RuntimeError as error:
            raise InputError(f"{checkpoint}: a head does not fit: {' '.join(str(error).split())}") from None
        if unexpected:
            raise InputError(f"{checkpoint}: a head has the tensor {unexpected[0]}, which the model lacks")
    return model


def pretrained(
    auto_model: Any, what: str, checkpoint: Path, config: Mapping[str, Any], *, headless: bool, poolerless: bool
) -> Model:
    """The model in a checkpoint directory, in float32 on the CPU; only safetensors are read, and no code is run.

    Args:
        auto_model: the transformers class that knows which model it is.
        what: it is, for messages.
        checkpoint: safetensors weights and config.json.
        config: what is said otherwise than in config.json.
        headless: whether tensors outside the body may be missing or of another shape; they are initialised at random.
        poolerless: whether those of the body's pooler may be missing; they are initialised at random.

    Raises:
        InputError: the checkpoint cannot be read, lacks a tensor, or has one of another shape than its config says.
    """
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint}: no checkpoint here (no config.json)")
    _check_self_contained(checkpoint)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, loading = auto_model.from_pretrained(
            checkpoint,
            **config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # whatever transformers makes of a broken checkpoint
        reason = " ".join(str(error).split())[:400]
        raise InputError(f"{checkpoint}: cannot be loaded as {what}: {reason}") from None
    body = f"{model.base_model_prefix}."
    missing = set(map(str, loading["missing_keys"]))
    lacking = dict.fromkeys(missing, "lacks the tensor {}")
    lacking |= {
        str(entry[0]): "tensor {} has another shape than the config says" for entry in loading["mismatched_keys"]
    }
    for name, complaint in sorted(lacking.items()):
        new_pooler = poolerless and name in missing and name.startswith(f"{body}pooler.")
        if not new_pooler and (name.startswith(body) or not headless):
            raise InputError(f"{checkpoint}: {complaint.format(name)}; make or fetch the checkpoint again")
    return model


def _check_self_contained(checkpoint: Path) -> None:
    """Refuse a directory with which transformers would load weights or code from elsewhere."""
    if (checkpoint / "adapter_config.json").exists():
        raise InputError(f"{checkpoint}: has an adapter_config.json; merge the adapter into its base model first")
    for key, value in _implementations(read_json(checkpoint / "config.json")):
        if "/" in str(value):  # a repository of kernels, compiled code
            raise InputError(f"{checkpoint / 'config.json'}: {key} = {value!r} is code from elsewhere; remove it")


def _implementations(config: object) -> Iterator[tuple[str, object]]:
    """What a configuration, or one in it, says of how to compute."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key.endswith("_implementation"):
            yield key, value
        yield from _implementations(value)


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer in a checkpoint directory."""
    try:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers makes of broken files
        raise InputError(
            f"{checkpoint}: its tokenizer cannot be loaded: {' '.join(str(error).split())[:400]}"
        ) from None


def encode(
    tokenizer: Tokenizer, frame: pd.DataFrame, task: TaskData, positions: int | None, seed: int
) -> dict[str, list[Any]]:
    """Token ids and masks of every example, without padding, and `labels`.

    Args:
        tokenizer: the model's.
        frame: the examples.
        task: theirs.
        positions: how many the model has, if it has a limit.
        seed: of what is drawn at random in the examples; here that is nothing.

    Raises:
        InputError: the task's texts may be longer than the model's `positions`.
    """
    return tokens(tokenizer, frame, task, positions) | {"labels": frame["label"].tolist()}


def tokens(tokenizer: Tokenizer, frame: pd.DataFrame, task: TaskData, positions: int | None) -> dict[str, list[Any]]:
    """Token ids and masks of every text, or pair of texts, without padding. Raises `InputError` as `encode` does."""
    if positions is not None and task.max_length > positions:
        raise InputError(
            f"tasks.{task.name}.max_length = {task.max_length}: the model reads at most {positions} tokens; lower it"
        )
    pair = frame["text_pair"].tolist() if "text_pair" in frame else None
    return dict(tokenizer(frame["text"].tolist(), pair, truncation=True, max_length=task.max_length))


def training_set(tokenizer: Tokenizer, encoded: Mapping[str, list[Any]], seed: int) -> Dataset:
    """The examples to train on; `seed` is of what is drawn anew in every epoch, which here is nothing."""
    return Dataset.from_dict(dict(encoded))


def collator(tokenizer: Tokenizer) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
    """Pads a list of examples to the longest of them."""
    return transformers.DataCollatorWithPadding(tokenizer)


def batches(
    tokenizer: Tokenizer, encoded: Mapping[str, list[Any]], order: Sequence[int], batch_size: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the examples in the given order, each padded to its own longest."""
    return collated(collator(tokenizer), encoded, order, batch_size, device)


def collated(
    collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]],
    encoded: Mapping[str, list[Any]],
    order: Sequence[int],
    batch_size: int,
    device: torch.device,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the examples in the given order, as `collate` makes them, on the device."""
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = collate([{key: values[row] for key, values in encoded.items()} for row in rows])
        yield {key: tensor.to(device) for key, tensor in batch.items()}


def by_length(encoded: Mapping[str, list[Any]]) -> list[int]:
    """The examples' positions, longest first: little padding, and memory runs out at once or not at all."""
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


def position_limit(model: Model) -> int | None:
    """How many positions the model has, if it has a limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@dataclass(frozen=True)
class Examples:
    """Tokenised examples in batches on a device, longest first, and their positions in the table in that order."""

    batches: Sequence[Mapping[str, torch.Tensor]]
    order: Sequence[int]


def tokenize(
    tokenizer: Tokenizer, frame: pd.DataFrame, task: TaskData, positions: int | None, device: torch.device
) -> Examples:
    """A table's examples, ready for `predict`, as often as wanted."""
    encoded = encode(tokenizer, frame, task, positions, seed=0)
    order = by_length(encoded)
    return Examples(list(batches(tokenizer, encoded, order, PREDICTION_BATCH, device)), order)


def predict(model: Model, examples: Examples) -> np.ndarray:
    """The logits [examples, K] in float32, in the table's order. The model must be on the examples' device."""
    model.eval()
    with torch.inference_mode():
        rows = [
            model(**{key: tensor for key, tensor in batch.items() if key != "labels"}).logits.float().cpu()
            for batch in examples.batches
        ]
    logits = np.empty((len(examples.order), rows[0].shape[-1]), dtype=np.float32)
    logits[examples.order] = torch.cat(rows).numpy()
    return logits


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of the examples [B, K] whose largest logit is their label's [B]."""
    return float((logits.argmax(-1) == labels).mean())
