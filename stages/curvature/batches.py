"""Batches: dicts of tensors whose first axis is the examples', and of settings that are the same for all of them.

`labels` are for the likelihood and are not shown to the model. A tensor [1, …] beside longer ones (position ids, say)
is the same for all examples, and so is whatever is no tensor.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.curvature.errors import CurvatureError, UnsupportedModelError

Batch = Mapping[str, Any]


def batch_size(batch: Batch) -> int:
    """The number of examples.

    Raises:
        CurvatureError: it is no dict, has no tensors, or has tensors of different numbers of examples.
    """
    if not isinstance(batch, Mapping):
        raise CurvatureError(
            f"a batch is a {type(batch).__name__}; it must be a dict of the model's arguments, such as {{'x': tensor}}"
        )
    sizes = {name: len(value) for name, value in batch.items() if isinstance(value, Tensor) and value.ndim > 0}
    if not sizes:
        raise CurvatureError("a batch has no tensors, so there are no examples in it")
    most = max(sizes.values())
    for name, size in sizes.items():
        if size not in (1, most):
            raise CurvatureError(
                f"a batch's {name!r} has {size} rows where others have {most}; axis 0 of every tensor is the examples"
            )
    return most


def device_of(batch: Batch) -> torch.device:
    """Where the batch is."""
    return next(value.device for value in batch.values() if isinstance(value, Tensor))


def rows_of(batch: Batch, start: int, stop: int) -> dict[str, Any]:
    """The examples start … stop − 1 of a batch."""
    return chosen_rows(batch, range(start, stop))


def chosen_rows(batch: Batch, rows: range | list[int]) -> dict[str, Any]:
    """The examples of these numbers, in this order."""
    size = batch_size(batch)
    index: slice | list[int] = slice(rows.start, rows.stop) if isinstance(rows, range) else rows

    def chosen(value: Any) -> Any:
        by_example = isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
        return value[index] if by_example else value

    return {name: chosen(value) for name, value in batch.items()}


def padding_masks(batch: Batch) -> list[Tensor]:
    """[B, T] each: which positions are no padding; of `output_positions`, to which a head may be restricted, −1 is.

    Of several texts an example, [B, texts, T]; a single one is [B, T], as it is for the model's modules.
    """
    masks = [batch[name] for name in ("attention_mask", "decoder_attention_mask") if name in batch]
    masks += [batch["output_positions"] >= 0] if "output_positions" in batch else []
    return [mask.squeeze(1) if mask.ndim == 3 else mask for mask in masks]


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What the model is called with.

    Where a sequence-to-sequence model of transformers is given no decoder inputs, they are the labels one position
    later, as the model itself makes them in training.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    given = inputs.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}
    if "labels" in batch and not given and _generates_from_an_encoder(model):
        generating: Any = model
        inputs["decoder_input_ids"] = generating.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    return inputs


def _generates_from_an_encoder(model: nn.Module) -> bool:
    """Whether it is one of transformers' sequence-to-sequence models, and no classifier made of one."""
    config: Any = getattr(model, "config", None)
    able = getattr(model, "can_generate", lambda: False)
    shifts = hasattr(model, "prepare_decoder_input_ids_from_labels")
    return shifts and bool(getattr(config, "is_encoder_decoder", False)) and bool(able())


def model_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """The logits of a batch; axis 0 is the examples.

    Raises:
        UnsupportedModelError: it is not, or the model returns no logits.
    """
    outputs = model(**model_inputs(model, batch))
    if isinstance(outputs, Tensor):
        logits = outputs
    else:
        found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        if not isinstance(found, Tensor):
            raise UnsupportedModelError(
                f"the model ({type(model).__name__}) returns a {type(outputs).__name__} without `logits`; wrap it in a "
                "module that returns the tensor [examples, …] whose likelihood is meant"
            )
        logits = found
    if logits.ndim == 0 or len(logits) != batch_size(batch):
        raise UnsupportedModelError(f"the model's outputs have shape {list(logits.shape)}; axis 0 is not the examples")
    return logits
