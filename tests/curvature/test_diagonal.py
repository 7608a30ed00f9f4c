"""The diagonal Fisher against a per-example, per-class float64 autograd loop."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from stages.curvature import TokenCategorical, UnsupportedModelError, diagonal_fisher
from tests.curvature.reference import assert_same_fisher, reference_fisher
from tests.tiny import batch, tiny_bert

LENGTHS = [9, 3, 5, 9, 2, 7]


def rows(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{key: value[row : row + 1] for key, value in batch.items()} for row in range(len(batch["input_ids"]))]


def unpadded(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value[:, : int(row["attention_mask"].sum())] for key, value in row.items()}


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_exact_on_bert_with_padding_and_dropout_configured(classes: int) -> None:
    model = tiny_bert([f"label {k}" for k in range(classes)], hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    batches = [batch(4, 9, LENGTHS[:4], seed=1), batch(2, 9, LENGTHS[4:], seed=2)]
    found = diagonal_fisher(model.train(), batches)
    wanted = reference_fisher(model, [unpadded(row) for one in batches for row in rows(one)])
    assert "bert.embeddings.position_embeddings.weight" in found
    assert_same_fisher(found, wanted)
    assert float(wanted["bert.encoder.layer.0.attention.self.key.bias"].max()) < 1e-20  # softmax does not see it


def test_confident_predictions_keep_their_digits() -> None:
    model = tiny_bert(("a", "b", "c"))
    with torch.no_grad():
        model.classifier.bias.add_(torch.tensor([30.0, 0.0, -10.0]))  # p is 1 to float32's rounding
    batches = [batch(4, 6, [6, 3, 4, 5])]
    found, wanted = diagonal_fisher(model, batches), reference_fisher(model, batches)
    assert wanted["classifier.weight"].max() < 1e-10
    assert_same_fisher(found, wanted, tolerance=1e-4)


def test_depends_on_the_examples_not_on_their_batches() -> None:
    model = tiny_bert()
    whole = batch(6, 9, LENGTHS)
    parts = [{key: value[row : row + 1] for key, value in whole.items()} for row in range(6)]
    together, apart = diagonal_fisher(model, [whole]), diagonal_fisher(model, parts)
    for name in together:
        torch.testing.assert_close(together[name], apart[name], rtol=1e-4, atol=1e-10)


def test_labels_are_ignored_and_parameters_restrict() -> None:
    model = tiny_bert()
    inputs = batch(3, 5)
    labelled = {**inputs, "labels": torch.tensor([0, 1, 0])}
    names = ["classifier.weight", "bert.encoder.layer.1.output.dense.weight"]
    all_of_them, some = diagonal_fisher(model, [labelled]), diagonal_fisher(model, [inputs], parameters=names)
    assert sorted(some) == sorted(names)
    for name in names:
        assert torch.equal(some[name], all_of_them[name])


def test_same_bits_twice() -> None:
    first, second = (diagonal_fisher(tiny_bert(), [batch(6, 9, LENGTHS)]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_bert().train()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    model.classifier.eval()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}

    def failing():  # type: ignore[no-untyped-def]
        yield batch(2, 4)
        raise RuntimeError("no more")

    diagonal_fisher(model, [batch(2, 4)])
    with pytest.raises(RuntimeError, match="no more"):
        diagonal_fisher(model, failing())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "classifier.weight")


class _Classifier(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_a_model_that_mixes_examples_is_refused_by_name() -> None:
    x = {"x": torch.randn(5, 4)}
    with pytest.raises(UnsupportedModelError, match=r"module body \(BatchNorm1d without running statistics\) mixes"):
        diagonal_fisher(_Classifier(nn.BatchNorm1d(4, track_running_stats=False)), [x])


def test_wrong_arguments() -> None:
    model = _Classifier(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"likelihood = 'normal': must be an object, such as `Categorical\(\)`"):
        diagonal_fisher(model, [], likelihood="normal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown estimator 'rough'"):
        diagonal_fisher(model, [], estimator="rough")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="samples = 0"):
        diagonal_fisher(model, [], estimator="sketch", samples=0)
    with pytest.raises(ValueError, match="no parameter 'tail'"):
        diagonal_fisher(model, [], parameters=["tail"])
    with pytest.raises(ValueError, match="no examples"):
        diagonal_fisher(model, [])
    with pytest.raises(ValueError, match=r"needs \[examples, positions, classes\]"):
        diagonal_fisher(model, [{"x": torch.randn(5, 4)}], likelihood=TokenCategorical(), estimator="sketch")
