"""On a GPU, the same figures as everywhere: exact, the same bits twice, and smaller batches where memory runs out."""

import warnings
from collections.abc import Mapping

import pytest
import torch
import transformers as t
from torch import Tensor, nn

from stages.curvature import curvature_statistics, diagonal_fisher
from stages.curvature.precision import float32_products
from tests.curvature.reference import assert_same_fisher, reference_fisher
from tests.curvature.test_architectures import IMAGE_MODELS, TEXT_MODELS, images, randomised, texts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

Batch = Mapping[str, Tensor]


def model_and_batches(family: str, classes: int) -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    if family in TEXT_MODELS:
        return randomised(TEXT_MODELS[family](classes)), [*texts()]
    return randomised(IMAGE_MODELS[family](classes)), [*images()]


def on_gpu(batches: list[Batch]) -> list[Batch]:
    return [{key: value.cuda() for key, value in batch.items()} for batch in batches]


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("family", [*TEXT_MODELS, *IMAGE_MODELS])
def test_exact(family: str, classes: int) -> None:
    model, batches = model_and_batches(family, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what goes one example at a time: test_architectures.py sees to that
        with float32_products():  # torch's convolutions are in TF32 otherwise
            found = on_cpu(diagonal_fisher(model.cuda(), on_gpu(batches)))
    assert_same_fisher(found, reference_fisher(model.cpu(), batches))


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_same_bits_twice(family: str) -> None:
    model, batches = model_and_batches(family, 3)
    model, batches = model.cuda(), on_gpu(batches)
    first, second = (curvature_statistics(model, batches, statistics=("diagonal", "kfac")) for _ in range(2))
    for one, other in (
        (first.diagonal, second.diagonal),
        (first.input_factors, second.input_factors),
        (first.output_factors, second.output_factors),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_factors_are_those_of_the_cpu() -> None:
    model, batches = model_and_batches("bert", 3)
    wanted = curvature_statistics(model, batches, statistics=("diagonal", "kfac"))
    found = curvature_statistics(model.cuda(), on_gpu(batches), statistics=("diagonal", "kfac"))
    for factors, references in (
        (found.input_factors, wanted.input_factors),
        (found.output_factors, wanted.output_factors),
    ):
        assert factors.keys() == references.keys() != set()
        for name, reference in references.items():
            assert float((factors[name].cpu() - reference).norm() / reference.norm()) < 1e-5, name


def test_passes_in_bfloat16() -> None:
    model, batches = model_and_batches("bert", 2)
    model, batches = model.cuda(), on_gpu(batches)
    wanted = diagonal_fisher(model, batches)
    with torch.autocast("cuda", torch.bfloat16):
        found = diagonal_fisher(model, batches)
    flat, exact = (torch.cat([value.flatten() for value in fisher.values()]) for fisher in (found, wanted))
    assert flat.dtype == torch.float32
    assert float((flat - exact).norm() / exact.norm()) < 0.05


def test_tf32_is_not_taken_for_a_missed_use_of_a_parameter() -> None:
    """Its rounding is larger than what the comparison with autograd lets pass."""
    torch.manual_seed(0)
    config = t.BertConfig(vocab_size=40, num_hidden_layers=3, id2label={0: "0", 1: "1"})  # BERT-base's width
    model, batches = t.BertForSequenceClassification(config).eval().cuda(), on_gpu([*texts()])
    wanted = diagonal_fisher(model, batches)
    torch.set_float32_matmul_precision("high")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = diagonal_fisher(model, batches)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    flat, exact = (torch.cat([value.flatten() for value in fisher.values()]) for fisher in (found, wanted))
    assert 0 < float((flat - exact).norm() / exact.norm()) < 0.02
