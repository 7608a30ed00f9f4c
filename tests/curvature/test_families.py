"""Architectures whose parameters are used in other ways than by their own module, example by example.

Both initialisations and both types, as in `make test-architectures`, of which this is a small part.
"""

import pytest

from tests.architectures.judge import judge_class

AT_FULL_SPEED = [
    ("sequence", "xlnet", "XLNetForSequenceClassification"),  # [T, B, H]
    ("seq2seq", "t5", "T5ForConditionalGeneration"),  # relative positions of the first layer, used by all
    ("seq2seq", "bart", "BartForConditionalGeneration"),  # a table that is shared, and whose owner is never called
    ("sequence", "opt", "OPTForSequenceClassification"),  # rows
    ("choice", "bert", "BertForMultipleChoice"),  # rows of choices
    ("image", "swin", "SwinForImageClassification"),  # windows
    ("image", "dinov2", "Dinov2ForImageClassification"),  # a mask token that nothing uses
    ("image", "siglip", "SiglipForImageClassification"),  # a pooling head that nothing uses
    ("sequence", "roformer", "RoFormerForSequenceClassification"),  # positions that are never trained
    ("causal", "mixtral", "MixtralForCausalLM"),  # experts
    ("causal", "qwen3_moe", "Qwen3MoeForCausalLM"),
    ("causal", "mamba", "MambaForCausalLM"),  # a module that uses its submodules' weights
    ("causal", "recurrent_gemma", "RecurrentGemmaForCausalLM"),
]
SLOW_IN_PART = [
    ("sequence", "mpnet", "MPNetForSequenceClassification"),  # relative positions, computed once for all
    ("sequence", "deberta-v2", "DebertaV2ForSequenceClassification"),
]


@pytest.mark.parametrize(("task", "architecture", "name"), AT_FULL_SPEED, ids=lambda value: str(value))
def test_exact_at_full_speed(task: str, architecture: str, name: str) -> None:
    results = judge_class(task, architecture, name)
    assert len(results) == 4
    assert {result.outcome for result in results} == {"exact"}, results


@pytest.mark.parametrize(("task", "architecture", "name"), SLOW_IN_PART, ids=lambda value: str(value))
def test_exact_and_slow_in_part_at_most(task: str, architecture: str, name: str) -> None:
    results = judge_class(task, architecture, name)
    assert len(results) == 4
    assert {result.outcome for result in results} <= {"exact", "slow in part"}, results
