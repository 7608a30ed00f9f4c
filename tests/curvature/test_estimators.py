"""Every likelihood's exact Fisher against enumeration of its outcomes; the random estimators against the exact one."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor, nn

from stages.curvature import Bernoulli, Categorical, Gaussian, Likelihood, TokenCategorical, diagonal_fisher
from stages.curvature.vectors import Estimator
from tests.curvature.reference import (
    Outcomes,
    assert_same_fisher,
    bernoulli,
    categorical,
    gaussian,
    reference_fisher,
    tokens,
)
from tests.curvature.test_architectures import SMALL, labels, randomised, texts


class Small(nn.Module):
    """Inputs [B, T, 4] to outputs [B, K], or per position [B, T, K]."""

    def __init__(self, outputs: int, per_position: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, outputs)
        self.per_position = per_position

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.layer(x).tanh())
        return self.head(h + h.mean(1, keepdim=True) if self.per_position else h.mean(1))


def inputs(**more: Tensor) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(4, 3, 4, generator=generator), **more}]


MASKED = torch.tensor([[0, 0, -100], [0, -100, 0], [-100, 0, 0], [0, 0, 0]])

CASES: list[tuple[Likelihood, Outcomes, int, bool, dict[str, Tensor]]] = [
    (Categorical(), categorical, 2, False, {}),
    (Categorical(), categorical, 5, False, {}),
    (Bernoulli(), bernoulli, 1, False, {}),
    (Bernoulli(), bernoulli, 4, False, {}),
    (Gaussian(), gaussian, 1, False, {}),
    (Gaussian(), gaussian, 3, False, {}),
    (Gaussian(variance=0.3), partial(gaussian, variance=0.3), 2, False, {}),
    (TokenCategorical(), tokens, 2, True, {"labels": MASKED}),
    (TokenCategorical(), tokens, 4, True, {"labels": MASKED}),
]


@pytest.mark.parametrize(("likelihood", "outcomes", "outputs", "per_position", "more"), CASES)
def test_exact(
    likelihood: Likelihood, outcomes: Outcomes, outputs: int, per_position: bool, more: dict[str, Tensor]
) -> None:
    model = Small(outputs, per_position)
    found = diagonal_fisher(model, inputs(**more), likelihood=likelihood)
    assert_same_fisher(found, reference_fisher(model, inputs(**more), outcomes))


@pytest.mark.parametrize(("likelihood", "outcomes", "outputs", "per_position", "more"), CASES)
@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_unbiased(
    likelihood: Likelihood,
    outcomes: Outcomes,
    outputs: int,
    per_position: bool,
    more: dict[str, Tensor],
    estimator: Estimator,
) -> None:
    """The mean over many seeds lies within 5 standard errors of the exact value, for each tensor's sum."""
    model = Small(outputs, per_position)
    exact = diagonal_fisher(model, inputs(**more), likelihood=likelihood)
    draws = [
        diagonal_fisher(model, inputs(**more), likelihood=likelihood, estimator=estimator, seed=seed)
        for seed in range(200)
    ]
    for name, value in exact.items():
        sums = torch.tensor([float(draw[name].double().sum()) for draw in draws], dtype=torch.float64)
        error = float(sums.mean() - value.double().sum())
        assert abs(error) <= 5 * float(sums.std()) / len(draws) ** 0.5 + 1e-5 * float(value.sum()), name


@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_more_samples_come_closer(estimator: Estimator) -> None:
    model = Small(5)
    exact = diagonal_fisher(model, inputs())["head.weight"]

    def error(samples: int) -> float:
        found = [
            diagonal_fisher(model, inputs(), estimator=estimator, samples=samples, seed=seed)["head.weight"]
            for seed in range(10)
        ]
        return float(torch.stack([(value - exact).square().sum() for value in found]).mean().sqrt())

    assert error(64) < error(1) / 4  # 8 expected


def test_a_sketch_of_two_classes_is_exact() -> None:
    model = Small(2)
    assert_same_fisher(diagonal_fisher(model, inputs(), estimator="sketch"), reference_fisher(model, inputs()))


def test_seeds() -> None:
    first, again, other = (diagonal_fisher(Small(4), inputs(), estimator="sampled", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_empirical_uses_the_observed_labels() -> None:
    y = torch.tensor([0, 3, 2, 2])

    def observed(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
        return [(1.0, torch.log_softmax(z, -1)[int(batch["labels"])])]

    model = Small(4)
    with pytest.raises(ValueError, match="needs `labels`"):
        diagonal_fisher(model, inputs(), estimator="empirical")
    found = diagonal_fisher(model, inputs(labels=y), estimator="empirical")
    assert_same_fisher(found, reference_fisher(model, inputs(labels=y), observed))


def test_too_many_token_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 positions with 40 labels each takes 117 .* estimator='sketch'"):
        diagonal_fisher(Small(40, per_position=True), inputs(), likelihood=TokenCategorical())


def causal_outcome(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """The observed text's log-likelihood: each position predicts the next id."""
    log_p = torch.log_softmax(z, -1)
    ids, mask = batch["input_ids"][0], batch["attention_mask"][0]
    total = torch.zeros((), dtype=z.dtype)
    for position in range(len(ids) - 1):
        if mask[position + 1]:
            total = total + log_p[position, ids[position + 1]]
    return [(1.0, total)]


CAUSAL: dict[str, Any] = {
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL, tie_word_embeddings=True)),
}


@pytest.mark.parametrize("family", list(CAUSAL))
def test_causal_language_models_with_a_tied_head(family: str) -> None:
    torch.manual_seed(0)
    model = randomised(CAUSAL[family]())
    batches = [
        {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in texts()
    ]
    found = diagonal_fisher(model, batches, likelihood=TokenCategorical(shift=True), estimator="empirical")
    assert_same_fisher(found, reference_fisher(model, batches, causal_outcome))


def test_t5_with_tied_embeddings_and_shared_relative_bias() -> None:
    torch.manual_seed(0)
    config = t.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0)
    model = randomised(t.T5ForConditionalGeneration(config))
    generator = torch.Generator().manual_seed(0)
    batches = []
    for batch in texts():
        targets = torch.randint(3, 40, (len(batch["input_ids"]), 4), generator=generator)
        batches.append({**batch, "decoder_input_ids": targets.roll(1, 1), "labels": targets})

    def observed(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
        return [(1.0, torch.log_softmax(z, -1)[torch.arange(4), batch["labels"][0]].sum())]

    found = diagonal_fisher(model, batches, likelihood=TokenCategorical(), estimator="empirical")
    assert_same_fisher(found, reference_fisher(model, batches, observed))


def test_token_classification_of_bert() -> None:
    torch.manual_seed(0)
    model = randomised(t.BertForTokenClassification(t.BertConfig(**SMALL, **labels(3))))
    batches = []
    for batch in texts():
        positions = torch.full_like(batch["input_ids"], -100)
        positions[:, 0] = positions[:, 2] = 0
        batches.append({**batch, "labels": positions})
    found = diagonal_fisher(model, batches, likelihood=TokenCategorical())
    assert_same_fisher(found, reference_fisher(model, batches, tokens))
