"""A batch of three examples for a task, and the log-likelihood of its labels."""

import inspect
from collections.abc import Collection

import torch
from torch import Tensor, nn

from stages.curvature import Categorical, Likelihood, TokenCategorical
from tests.architectures.settings import Settings
from tests.architectures.tiny import CLASSES, VOCABULARY

LIKELIHOODS: dict[str, Likelihood] = {
    "sequence": Categorical(),
    "image": Categorical(),
    "choice": Categorical(),
    "token": TokenCategorical(),
    "masked": TokenCategorical(),
    "seq2seq": TokenCategorical(),
    "causal": TokenCategorical(shift=True),
}
EXAMPLES = 3
CHOICES = 2
SEPARATOR = 2
FIRST_WORD = 8  # below it are special tokens


def kind_of(task: str, model: nn.Module) -> str:
    """What the outputs mean: of those that transformers calls sequence to sequence, some have a decoder only."""
    without_encoder = "decoder_input_ids" not in inspect.signature(model.forward).parameters
    return "causal" if task == "seq2seq" and without_encoder else task


def batch_for(kind: str, model: nn.Module, settings: Settings) -> dict[str, Tensor]:
    """What the model takes of: a text, padded; its decoder's; an image; and the labels."""
    generator = torch.Generator().manual_seed(0)
    taken = inspect.signature(model.forward).parameters
    if kind == "image":
        return {**_images(taken, settings.image, generator), "labels": torch.arange(EXAMPLES) % CLASSES}
    ids, mask = _texts(settings.length, generator)
    batch = {"inputs" if "input_ids" not in taken and "inputs" in taken else "input_ids": ids, "attention_mask": mask}
    if "bbox" in taken:
        batch["bbox"] = torch.randint(0, 30, (*ids.shape, 4), generator=generator).sort(-1).values[..., [0, 1, 3, 3]]
    if kind == "seq2seq":
        batch["decoder_input_ids"], batch["decoder_attention_mask"] = _texts(5, generator)
    elif getattr(model, "can_generate", bool)() and "decoder_input_ids" in taken:  # of labels, it would make its own
        batch["decoder_input_ids"] = batch["input_ids"]
    if kind == "choice":
        batch["input_ids"][:, :2] = SEPARATOR  # Longformer wants three
        batch = {name: tensor[:, None].repeat_interleave(CHOICES, 1) for name, tensor in batch.items()}
        batch["input_ids"][:, 1, 2] = torch.randint(FIRST_WORD, VOCABULARY, (EXAMPLES,), generator=generator)
    batch = {name: tensor for name, tensor in batch.items() if name in taken or name == "input_ids"}
    return batch | {"labels": _labels(kind, ids, mask, batch, generator)}


def _images(taken: Collection[str], size: int, generator: torch.Generator) -> dict[str, Tensor]:
    if "spatial_shapes" in taken:  # cut into patches of 4 by 4
        return {
            "pixel_values": torch.randn(EXAMPLES, 16, 48, generator=generator),
            "pixel_attention_mask": torch.ones(EXAMPLES, 16, dtype=torch.int64),
            "spatial_shapes": torch.full((EXAMPLES, 2), 4),
        }
    if "pixel_values" not in taken and "input_ids" in taken:  # a colour per position
        return {"input_ids": torch.randint(FIRST_WORD, VOCABULARY, (EXAMPLES, 16), generator=generator)}
    name = "pixel_values" if "pixel_values" in taken else "inputs"
    return {name: torch.randn(EXAMPLES, 3, size, size, generator=generator)}


def _texts(length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and mask [EXAMPLES, length]: three lengths, each text with an end token, padding on the right."""
    lengths = torch.tensor([length, length // 2 + 1, length - 1])
    ids = torch.randint(FIRST_WORD, VOCABULARY, (EXAMPLES, length), generator=generator)
    ids[torch.arange(EXAMPLES), lengths - 1] = SEPARATOR
    mask = (torch.arange(length) < lengths[:, None]).long()
    return ids * mask, mask


def _labels(kind: str, ids: Tensor, mask: Tensor, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    if kind in ("sequence", "choice"):
        return torch.arange(EXAMPLES) % (CLASSES if kind == "sequence" else CHOICES)
    if kind == "token":
        return torch.randint(CLASSES, ids.shape, generator=generator).masked_fill(mask == 0, -100)
    if kind == "causal":
        return ids.masked_fill(mask == 0, -100)
    if kind == "seq2seq":
        words = torch.randint(FIRST_WORD, VOCABULARY, batch["decoder_input_ids"].shape, generator=generator)
        return words.masked_fill(_texts(5, generator)[1] == 0, -100)
    chosen = torch.zeros_like(mask)
    chosen[:, 1::3] = 1
    return ids.masked_fill((mask * chosen) == 0, -100)


def log_likelihood(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Of one example's labels [1, …], written from the definitions."""
    log_p = torch.log_softmax(logits[0], -1)
    label = labels[0]
    if LIKELIHOODS[kind] == Categorical():
        return log_p[label]
    if kind == "causal":
        log_p, label = log_p[:-1], label[1:]
    return torch.stack([log_p[t, y] for t, y in enumerate(label.tolist()) if y != -100]).sum()
