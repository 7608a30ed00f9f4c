"""The slow path: what it holds at a time, and what it leaves behind."""

import weakref
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from stages.curvature import autograd


class Bag(nn.Module):
    """Embeddings' sum through a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).sum(1))


def frozen() -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """A model, a batch, sums, and four vectors."""
    model = Bag().requires_grad_(False)
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    return model, {"ids": torch.arange(6).reshape(2, 3)}, sums, list(torch.randn(4, 2, 3))


def test_one_vectors_gradients_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients_at = autograd.gradients_at
    made: list[weakref.ref[Tensor]] = []

    def watched(outputs: Tensor, parameters: Mapping[str, nn.Parameter], vector: Tensor, last: bool) -> object:
        assert all(gradient() is None for gradient in made)
        gradients = gradients_at(outputs, parameters, vector, last)
        made.extend(map(weakref.ref, gradients.values()))
        return gradients

    monkeypatch.setattr(autograd, "gradients_at", watched)
    autograd.add_by_autograd(*frozen())
    assert len(made) == 2 * 4 * 3  # examples, vectors, parameters


def test_the_model_is_left_as_it_was_whatever_happens() -> None:
    model, batch, sums, vectors = frozen()
    with pytest.raises(RuntimeError):
        autograd.add_by_autograd(model, batch, sums, [vector[:, :2] for vector in vectors])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.sparse for module in model.modules() if isinstance(module, nn.Embedding))
