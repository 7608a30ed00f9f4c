"""Makers of tiny inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from stages.storage.cards import write_json

WORDS = [
    "awful",
    "bad",
    "dull",
    "poor",
    "fine",
    "good",
    "great",
    "superb",
    "film",
    "book",
    "plot",
    "day",
    "the",
    "a",
    "is",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with BERT's special tokens."""
    vocabulary = {token: position for position, token in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def tiny_config(labels: Sequence[str], **changes: Any) -> BertConfig:
    """A BERT of a few thousand parameters."""
    settings: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 24,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    return BertConfig(**(settings | changes))


def tiny_bert(
    labels: Sequence[str] = ("bad", "good"), seed: int = 0, noise: float = 0.1, **changes: Any
) -> BertForSequenceClassification:
    """A random classifier; the noise makes biases and LayerNorms random too."""
    torch.manual_seed(seed)
    model = BertForSequenceClassification(tiny_config(labels, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return model


def tiny_masked_lm(seed: int = 0, noise: float = 0.1, **changes: Any) -> BertForMaskedLM:
    """A random masked-LM model, as random as `tiny_bert`; it has no pooler, and its decoder is its embeddings."""
    torch.manual_seed(seed)
    model = BertForMaskedLM(tiny_config((), **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return model


def save_base(directory: Path) -> None:
    """A base model without a head, with its tokenizer."""
    torch.manual_seed(0)
    BertModel(tiny_config(("bad", "good"))).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)


def sentiment_table(rows: int, seed: int, text: str = "text", label: str = "label") -> pd.DataFrame:
    """Distinct sentences of known words; `good` if more of them are kind than not."""
    random = np.random.default_rng(seed)
    seen: dict[str, str] = {}
    while len(seen) < rows:
        chosen = random.choice(WORDS, size=random.integers(3, 9))
        score = sum(1 if WORDS.index(word) in range(4, 8) else -1 if WORDS.index(word) < 4 else 0 for word in chosen)
        if score:
            seen.setdefault(" ".join(chosen), "good" if score > 0 else "bad")
    return pd.DataFrame({text: list(seen), label: list(seen.values())})


def stripes(rows: int, seed: int, size: int = 8) -> tuple[np.ndarray, list[str]]:
    """Distinct images [rows, size, size] of uint8 with bright stripes, and which way these go."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 60, (rows, size, size))
    labels = ["across" if row % 2 else "down" for row in range(rows)]
    for image, label in zip(images, labels, strict=True):
        lines = random.choice(size, size=3, replace=False)
        image[(lines,) if label == "across" else (slice(None), lines)] += 180
    return images.astype(np.uint8), labels


def pixel_table(images: np.ndarray, labels: Sequence[str]) -> pd.DataFrame:
    """A pixel a column, and then the label."""
    return pd.DataFrame(images.reshape(len(images), -1)).assign(label=labels)


def tiny_vit(
    labels: Sequence[str] = ("across", "down"), seed: int = 0, noise: float = 0.1, **changes: Any
) -> ViTForImageClassification:
    """A random classifier of grey images of 8 × 8 pixels; see `tiny_bert`."""
    settings: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    torch.manual_seed(seed)
    model = ViTForImageClassification(ViTConfig(**(settings | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return model


def save_image_processor(directory: Path, size: int = 8, channels: int = 1) -> None:
    """The preprocessor_config.json of a ViT: pixels from 0 to 255 become −1 to 1."""
    directory.mkdir(parents=True, exist_ok=True)
    steps = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "image_mean": [0.5] * channels,
        "image_std": [0.5] * channels,
    }
    write_json(directory / "preprocessor_config.json", steps)


def save_vit(directory: Path, **changes: Any) -> None:
    """A tiny ViT's checkpoint, with its image processor."""
    model = tiny_vit(**changes)
    model.save_pretrained(directory)
    save_image_processor(directory, channels=model.config.num_channels)


def batch(rows: int, length: int, lengths: Sequence[int] | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ids with an attention mask, padded at the end to `length`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(SPECIAL), len(SPECIAL) + len(WORDS), (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row, used in enumerate(lengths or []):
        ids[row, used:] = 0
        mask[row, used:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def tensors_of(model: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    """Copies of a model's parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
