"""Padding on the left, on the right and none give the same Fisher: position t predicts token t + 1 of its text."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers as t
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from stages.curvature import BackwardVectors, TokenCategorical, curvature_statistics, diagonal_fisher
from stages.curvature.vectors import ESTIMATORS, Estimator
from tests.curvature.reference import assert_same_fisher, reference_fisher
from tests.curvature.test_architectures import randomised

VOCABULARY = 5  # so that the exact Fisher takes few passes
PADDING = 1  # has an embedding as any token: where it is called padding, transformers sets that to zero
TEXTS = [[2, 4, 3, 0], [3, 2], [4, 0, 2]]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
WIDE: dict[str, Any] = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 16}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
GROUPED: dict[str, Any] = {**WIDE, "num_key_value_heads": 1, "head_dim": 8}

# Causal models, and whether they are to be told the positions: from the mask, those of OPT and Bloom find them.
CAUSAL: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "gpt2": (lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2)), True),
    "gpt-neox": (lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**WIDE)), True),
    "opt": (
        lambda: t.OPTForCausalLM(t.OPTConfig(**WIDE, ffn_dim=24, word_embed_proj_dim=16)),
        False,
    ),
    "bloom": (
        lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2)),
        False,
    ),
    "llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**WIDE)), True),
    "mistral": (lambda: t.MistralForCausalLM(t.MistralConfig(**GROUPED, sliding_window=3)), True),
    "qwen2": (lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**WIDE, num_key_value_heads=1)), True),
    "qwen3": (lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED)), True),
    "gemma": (lambda: t.GemmaForCausalLM(t.GemmaConfig(**GROUPED)), True),
    "phi": (lambda: t.PhiForCausalLM(t.PhiConfig(**WIDE)), True),
    "falcon": (lambda: t.FalconForCausalLM(t.FalconConfig(**SIZES, alibi=False)), True),
}


def padded(texts: list[list[int]], left: bool, with_positions: bool, labelled: bool = False) -> dict[str, Tensor]:
    """One batch, padded to one token more than its longest text."""
    length = max(map(len, texts)) + 1

    def rows(values: list[list[int]], padding: int) -> Tensor:
        filled = [(row, [padding] * (length - len(row))) for row in values]
        return torch.tensor([[*fill, *row] if left else [*row, *fill] for row, fill in filled])

    batch = {"input_ids": rows(texts, PADDING), "attention_mask": rows([[1] * len(text) for text in texts], 0)}
    if with_positions:
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return batch | ({"labels": rows(texts, -100)} if labelled else {})


def alone(labelled: bool = False) -> list[dict[str, Tensor]]:
    batches = [{"input_ids": torch.tensor([text])} for text in TEXTS]
    return [batch | {"labels": batch["input_ids"]} for batch in batches] if labelled else batches


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("family", list(CAUSAL))
def test_causal_models(family: str, estimator: Estimator) -> None:
    make, with_positions = CAUSAL[family]
    torch.manual_seed(0)
    model = randomised(make()).eval()
    labelled = estimator == "empirical"

    def fisher(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return diagonal_fisher(model, batches, likelihood=TokenCategorical(shift=True), estimator=estimator, seed=3)

    wanted = fisher(alone(labelled))
    assert max(float(value.max()) for value in wanted.values()) > 0
    for left in (True, False):
        assert_same_fisher(fisher([padded(TEXTS, left, with_positions, labelled)]), wanted)


def next_token(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """The text's log-likelihood, its first token given; the text is where the mask is."""
    shown = batch["attention_mask"][0].bool()
    log_p, ids = torch.log_softmax(z[shown], -1), batch["input_ids"][0][shown]
    return [(1.0, log_p[torch.arange(len(ids) - 1), ids[1:]].sum())]


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma"])
def test_causal_models_against_autograd(family: str, left: bool) -> None:
    make, with_positions = CAUSAL[family]
    torch.manual_seed(0)
    model = randomised(make())
    batches = [padded(TEXTS, left, with_positions, labelled=True)]
    found = diagonal_fisher(model, batches, likelihood=TokenCategorical(shift=True), estimator="empirical")
    assert_same_fisher(found, reference_fisher(model, batches, next_token))


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_factors(family: str) -> None:
    make, with_positions = CAUSAL[family]
    torch.manual_seed(0)
    model = randomised(make()).eval()

    def factors(batches: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        found = curvature_statistics(model, batches, likelihood=TokenCategorical(shift=True), statistics=["kfac"])
        return found.input_factors, found.output_factors

    wanted = factors(alone())
    assert wanted[1]
    for left in (True, False):
        for found, right in zip(factors([padded(TEXTS, left, with_positions)]), wanted, strict=True):
            assert_same_fisher(found, right)


CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: t.GPT2ForSequenceClassification(t.GPT2Config(**GPT2, pad_token_id=PADDING)),
    "llama": lambda: t.LlamaForSequenceClassification(t.LlamaConfig(**{**WIDE, "pad_token_id": PADDING})),
    "qwen2": lambda: t.Qwen2ForSequenceClassification(
        t.Qwen2Config(**{**WIDE, "num_key_value_heads": 1, "pad_token_id": PADDING})
    ),
}


@pytest.mark.parametrize("family", list(CLASSIFIERS))
def test_classifiers_that_look_at_the_last_token(family: str) -> None:
    torch.manual_seed(0)
    model = randomised(CLASSIFIERS[family]()).eval()
    wanted = diagonal_fisher(model, alone())
    for left in (True, False):
        assert_same_fisher(diagonal_fisher(model, [padded(TEXTS, left, with_positions=True)]), wanted)


@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_token_classification_has_its_draws_wherever_a_text_begins(estimator: Estimator) -> None:
    torch.manual_seed(0)
    model = randomised(t.LlamaForTokenClassification(t.LlamaConfig(**{**WIDE, "num_labels": 3}))).eval()

    def fisher(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return diagonal_fisher(model, batches, likelihood=TokenCategorical(), estimator=estimator, samples=2)

    wanted = fisher(alone())
    for left in (True, False):
        assert_same_fisher(fisher([padded(TEXTS, left, with_positions=True)]), wanted)


O, I = 0, 1  # noqa: E741
COUNTED: dict[str, tuple[dict[str, list[int]], list[int]]] = {
    "nothing is known": ({}, [I, I, I, I, I, O]),
    "right": ({"attention_mask": [I, I, I, I, O, O]}, [I, I, I, O, O, O]),
    "left": ({"attention_mask": [O, O, I, I, I, I]}, [O, O, I, I, I, O]),
    "both sides": ({"attention_mask": [O, I, I, I, I, O]}, [O, I, I, I, O, O]),
    "a gap": ({"attention_mask": [I, I, O, O, I, I]}, [I, O, O, O, I, O]),
    "one token": ({"attention_mask": [O, O, O, O, O, I]}, [O, O, O, O, O, O]),
    "labels of the answer only": ({"labels": [-100, -100, -100, 2, 1, 0]}, [O, O, I, I, I, O]),
    "labels with a hole": ({"labels": [0, 1, -100, -100, 2, 1]}, [I, O, O, I, I, O]),
    "labels and a mask, left": (
        {"labels": [-100, -100, 0, 1, 2, 2], "attention_mask": [O, O, I, I, I, I]},
        [O, O, I, I, I, O],
    ),
    "labels at the padding": (
        {"labels": [1, 1, 0, 1, 2, 2], "attention_mask": [O, O, I, I, I, I]},
        [O, O, I, I, I, O],
    ),
    "the end that is also the padding is predicted, where it has a label": (
        {"labels": [0, 1, 2, 1, 1, 1], "attention_mask": [I, I, I, O, O, O]},
        [I, I, I, O, O, O],
    ),
    "packed": ({"position_ids": [0, 1, 2, 0, 1, 2]}, [I, I, O, I, I, O]),
    "packed, with padding": (
        {"position_ids": [0, 1, 0, 1, 2, 0], "attention_mask": [I, I, I, I, I, O]},
        [I, O, I, I, O, O],
    ),
    "positions beside padding on the left": (
        {"position_ids": [0, 0, 0, 1, 2, 3], "attention_mask": [O, O, I, I, I, I]},
        [O, O, I, I, I, O],
    ),
    "labels of a decoder": (
        {"decoder_input_ids": [0] * 6, "decoder_attention_mask": [O, I, I, I, O, O], "attention_mask": [I, I]},
        [O, I, I, O, O, O],
    ),
}


@pytest.mark.parametrize(("inputs", "counted"), COUNTED.values(), ids=COUNTED.keys())
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_positions_that_count(inputs: dict[str, list[int]], counted: list[int], estimator: Estimator) -> None:
    outputs = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": torch.zeros(1, 6), **{name: torch.tensor([row]) for name, row in inputs.items()}}
    if estimator == "empirical" and "labels" not in batch:
        mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask", [I] * 6))
        batch["labels"] = torch.tensor([[0 if real else -100 for real in mask]])
    vectors = BackwardVectors(TokenCategorical(shift=True), estimator).of(outputs, batch, 0)
    used = torch.stack(vectors).abs().sum((0, 1, 3)) > 0 if vectors else torch.zeros(6)
    assert used.int().tolist() == counted


def test_outputs_for_more_positions_than_the_batch_has_are_refused_by_name() -> None:
    """A virtual prompt is no part of `attention_mask`."""
    torch.manual_seed(0)
    model = get_peft_model(
        t.LlamaForCausalLM(t.LlamaConfig(**WIDE)), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    prompt = ["prompt_encoder.default.embedding.weight"]
    batch = padded(TEXTS, left=False, with_positions=False)

    def fisher(**labels: Tensor) -> dict[str, Tensor]:
        return diagonal_fisher(
            model, [batch | labels], likelihood=TokenCategorical(shift=True), estimator="sampled", parameters=prompt
        )

    with pytest.raises(ValueError, match=r"outputs have shape \[3, 8, 5\] and `attention_mask` \[3, 5\], .* `labels`"):
        fisher()
    with pytest.raises(ValueError, match=r"outputs have shape \[3, 8, 5\] and `labels` \[3, 5\]; give a label"):
        fisher(labels=batch["input_ids"])
    labels = nn.functional.pad(batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100), (3, 0), value=-100)
    assert float(fisher(labels=labels)[prompt[0]].max()) > 0


def test_a_mask_between_positions_needs_labels() -> None:
    outputs = torch.randn(1, 4, 3)
    packed = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).tril().bool()[None, None]
    vectors = BackwardVectors(TokenCategorical(shift=True), "sampled")
    with pytest.raises(ValueError, match=r"`attention_mask` \[1, 1, 4, 4\], so that it cannot be told"):
        vectors.of(outputs, {"attention_mask": packed}, 0)
    (vector,) = vectors.of(outputs, {"attention_mask": packed, "labels": torch.tensor([[-100, 1, -100, 1]])}, 0)
    assert (vector[0].abs().sum(1) > 0).tolist() == [True, False, True, False]
