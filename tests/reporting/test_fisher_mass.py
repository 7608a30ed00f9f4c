"""Names of real architectures, by layer and kind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from stages.reporting.fisher_mass import kind_of, mass_by_layer

SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(vocab_size=10, **SMALL)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=10, dim=8, n_layers=2, n_heads=2, hidden_dim=12)
    ),
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(vocab_size=10, n_embd=8, n_layer=2, n_head=2)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(vocab_size=10, num_key_value_heads=2, **SMALL)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2)
    ),
    "vit": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
}


@pytest.mark.parametrize("architecture", MODELS)
def test_every_tensor_of_an_architecture_is_known(architecture: str) -> None:
    with torch.device("meta"):
        model = MODELS[architecture]()
    tensors = {name: {"sum": 1.0} for name, _ in model.named_parameters()}
    assert [name for name in tensors if kind_of(name) == "other"] == []
    found = mass_by_layer(tensors)
    assert sum(found.values()) == pytest.approx(1)
    layers = list(dict.fromkeys(layer for layer, _ in found))
    inside = [layer for layer in layers if layer not in ("embeddings", "other", "pooler", "head")]
    if architecture == "t5":
        assert inside == ["decoder.block 0", "decoder.block 1", "encoder.block 0", "encoder.block 1"]
    else:
        assert inside == ["layer 0", "layer 1"]
        assert layers[-1] == "head"
    attention = {kind for layer, kind in found if layer == inside[0]}
    assert {"attention output", "intermediate", "output", "LayerNorm"} <= attention
    assert {"query", "key", "value"} <= attention or "query, key, value" in attention


def test_shares() -> None:
    found = mass_by_layer(
        {
            "bert.embeddings.word_embeddings.weight": {"sum": 1.0},
            "bert.embeddings.LayerNorm.bias": {"sum": 1.0},
            "bert.encoder.layer.10.attention.self.query.weight": {"sum": 2.0},
            "bert.encoder.layer.2.attention.self.query.weight": {"sum": 1.0},
            "bert.encoder.layer.2.attention.self.query.bias": {"sum": 1.0},
            "bert.pooler.dense.weight": {"sum": 1.0},
            "classifier.0.weight": {"sum": 1.0},
        }
    )
    assert found == {
        ("embeddings", "embeddings"): 0.125,
        ("embeddings", "LayerNorm"): 0.125,
        ("layer 2", "query"): 0.25,
        ("layer 10", "query"): 0.25,
        ("pooler", "pooler"): 0.125,
        ("head", "head"): 0.125,
    }
    assert list(found)[2:4] == [("layer 2", "query"), ("layer 10", "query")]


def test_a_fisher_of_nothing_but_zeros() -> None:
    assert mass_by_layer({"head.weight": {"sum": 0.0}}) == {("head", "head"): 0.0}
