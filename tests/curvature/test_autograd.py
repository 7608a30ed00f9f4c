"""The slow path: what it holds at a time, and what it leaves behind."""

import weakref

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


def test_one_parameters_gradient_at_a_time() -> None:
    model, batch, _, vectors = frozen()
    made: list[weakref.ref[Tensor]] = []

    def receive(_: str, gradient: Tensor) -> None:
        assert all(other() is None for other in made)
        made.append(weakref.ref(gradient))

    with autograd.differentiable(model, dict(model.named_parameters())) as parameters:
        outputs = model(**batch)
        for position, vector in enumerate(vectors):
            autograd.receive_gradients(outputs, parameters, vector, receive, last=position == len(vectors) - 1)
    assert len(made) == 4 * 3  # vectors, parameters


def test_gradients_that_arrive_are_noticed() -> None:
    model, batch, _, vectors = frozen()
    with autograd.watched(model, ["head.weight", "embedding.weight"]) as arrived:
        model(**batch).backward(torch.zeros(2, 3))
        assert arrived == set()
        model(**batch).backward(vectors[0])
    assert arrived == {"head.weight", "embedding.weight"}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_left_as_it_was_whatever_happens() -> None:
    model, batch, sums, vectors = frozen()
    left = torch.ones_like(model.get_parameter("head.weight"))
    model.get_parameter("head.weight").grad = left
    with pytest.raises(RuntimeError):
        autograd.add_by_autograd(model, batch, sums, [vector[:, :2] for vector in vectors])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.get_parameter("head.weight").grad is left
    assert model.get_parameter("embedding.weight").grad is None
