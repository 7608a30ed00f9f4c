"""Batches: dicts of batch-first tensors, whose `labels` are for the likelihood and are not shown to the model."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stages.curvature.errors import UnsupportedModelError


def batch_size(batch: Mapping[str, Tensor]) -> int:
    """The number of examples."""
    return len(next(iter(batch.values())))


def device_of(batch: Mapping[str, Tensor]) -> torch.device:
    """Where the batch is."""
    return next(iter(batch.values())).device


def rows_of(batch: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """The examples start … stop − 1 of a batch."""
    return {name: tensor[start:stop] for name, tensor in batch.items()}


def padding_masks(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """[B, T] each: which positions are no padding; of `output_positions`, to which a head may be restricted, −1 is."""
    masks = [batch[name] for name in ("attention_mask", "decoder_attention_mask") if name in batch]
    return masks + ([batch["output_positions"] >= 0] if "output_positions" in batch else [])


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model is called with."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def model_outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of a batch; axis 0 is the examples.

    Raises:
        UnsupportedModelError: it is not.
    """
    outputs = model(**model_inputs(batch))
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    if logits.ndim == 0 or len(logits) != batch_size(batch):
        raise UnsupportedModelError(f"the model's outputs have shape {list(logits.shape)}; axis 0 is not the examples")
    return logits
