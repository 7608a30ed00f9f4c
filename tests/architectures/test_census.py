"""The census finds what is wrong, and survives what dies."""

import os
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.architectures import census
from tests.architectures.judge import DTYPES, Result, judge_class, wrong_tensors

BERT = ("sequence", "bert", "BertForSequenceClassification")


def test_every_mapping_has_its_classes_once() -> None:
    heads = census.heads()
    assert len(heads) == len({(task, class_name) for task, _, class_name in heads}) > 500
    assert {task for task, _, _ in heads} == set(census.MAPPINGS)
    assert {BERT, ("causal", "gpt2", "GPT2LMHeadModel"), ("causal", "llama", "LlamaForCausalLM")} <= set(heads)


def test_a_model_that_is_exact() -> None:
    assert [result.outcome for result in judge_class(*BERT)] == ["exact"] * 4


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "the square of a sum over the batch": lambda fisher: 2 * fisher,
    "zero in a row": lambda fisher: fisher.index_fill(0, torch.tensor([0]), 0.0),
    "not a number": lambda fisher: fisher * float("nan"),
}


@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_is_judged_by_its_own_scale(
    spoil: Callable[[Tensor], Tensor], dtype: torch.dtype, scale: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    right = {"large": torch.rand(4, 8, generator=generator).double() + 0.5}
    right["small"] = scale * right["large"].flip(0)
    eps = torch.finfo(dtype).eps
    plain, found = (
        {name: value * (1 + eps * torch.randn(value.shape, generator=generator)) for name, value in right.items()}
        for _ in range(2)
    )
    assert wrong_tensors(found, plain, right, dtype) == {}
    assert list(wrong_tensors({**found, "small": spoil(found["small"])}, plain, right, dtype)) == ["small"]


def test_what_is_rounding_only_may_be_any_rounding() -> None:
    right = {"weight": torch.ones(8).double(), "key.bias": torch.full((8,), 1e-34).double()}
    plain = {"weight": torch.ones(8).double(), "key.bias": torch.full((8,), 1e-18).double()}
    for noise, wrong in ((0.0, []), (1e-17, []), (1e-6, ["key.bias"])):
        found = {"weight": torch.ones(8), "key.bias": torch.full((8,), noise)}
        assert list(wrong_tensors(found, plain, right, torch.float32)) == wrong


def test_a_bias_that_cancels_is_rounding_and_a_small_one_is_not() -> None:
    for small, wrong in ((1e-16, []), (1e-9, ["key.bias"])):
        right = {"key.weight": torch.ones(8).double(), "key.bias": torch.full((8,), small).double()}
        found = {"key.weight": torch.ones(8), "key.bias": torch.zeros(8)}
        assert list(wrong_tensors(found, right, right, torch.float32)) == wrong


def test_squares_below_float32_are_zero() -> None:
    right = {"weight": torch.full((8,), 1e-50).double()}
    assert wrong_tensors({"weight": torch.zeros(8)}, right, right, torch.float32) == {}


def judged(task: str, architecture: str, class_name: str) -> list[Result]:
    if class_name == "Dies":
        os.abort()
    if class_name == "Hangs":
        time.sleep(600)
    return [Result(task, architecture, class_name, "own float32", "exact")]


def test_a_class_that_dies_or_hangs_takes_no_other_with_it() -> None:
    names = ["One", "Dies", "Two", "Hangs", "Three"]
    results = census.in_processes([("token", "any", name) for name in names], judged, seconds=20)
    assert [result.class_name for result in results] == names
    assert [result.outcome for result in results] == ["exact", "crashing", "exact", "crashing", "exact"]
    assert results[1].detail == "the process died (exit code -6)"
    assert results[3].detail == "no answer within 20 s"
    assert census.table(results).splitlines()[3] == "| token | 3 | 0 | 0 | 0 | 2 | 0 |"


def test_the_worst_setting_of_a_class_counts() -> None:
    results = [
        Result(*BERT, setting, outcome)
        for setting, outcome in zip("abc", ["exact", "wrong", "not buildable"], strict=True)
    ]
    assert census.worst(results) == {BERT: "wrong"}
