"""Modules that see examples in other ways than as [B, …]: rows, other axes, several results, larger modules."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.curvature import BackwardVectors, Estimation, diagonal_fisher
from stages.curvature.calls import Layout, Shapes, layouts_of
from tests.curvature.reference import assert_same_fisher, reference_fisher


class Around(nn.Module):
    """x [B, T, H] through something that sees it otherwise."""

    def __init__(self, inner: nn.Module, through: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 4), inner, nn.Linear(4, 3)
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.through(self.inner, self.first(x).tanh()).tanh().mean(1))


class Scale(nn.Module):
    """No rule of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Gate(nn.Module):
    """Gives two results, of which the second is made of the first; both are used outside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        scaled = x * self.weight
        return scaled, {"gate": scaled.sigmoid()}


class Table(nn.Module):
    """Beside the examples it gets a table, which has as many rows as there may be examples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x * self.weight + (table * self.weight).sum(0)


class WrittenInto(nn.Module):
    """Its result is written into by the model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _gated(gate: nn.Module, h: Tensor) -> Tensor:
    scaled, others = gate(h)
    return scaled * others["gate"]


def _written_into(inner: nn.Module, h: Tensor) -> Tensor:
    y = inner(h.detach() * 2)
    y += h
    return y


TABLE = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "linear on rows": (lambda: nn.Linear(4, 4), lambda m, h: m(h.reshape(-1, 4)).reshape(h.shape)),
    "linear on [T, B, H]": (lambda: nn.Linear(4, 4), lambda m, h: m(h.transpose(0, 1)).transpose(0, 1)),
    "norm on rows": (lambda: nn.LayerNorm(4), lambda m, h: m(h.reshape(-1, 4)).reshape(h.shape)),
    "norm on [T, B, H]": (lambda: nn.LayerNorm(4), lambda m, h: m(h.transpose(0, 1)).transpose(0, 1)),
    "any module on rows": (Scale, lambda m, h: m(h.reshape(-1, 4)).reshape(h.shape)),
    "any module on [T, B, H]": (Scale, lambda m, h: m(h.transpose(0, 1)).transpose(0, 1)),
    "any module by keyword": (Scale, lambda m, h: m(x=h)),
    "two results": (Gate, _gated),
    "a table beside the examples": (Table, lambda m, h: m(h, TABLE)),
    "written into": (WrittenInto, _written_into),
    "twice": (Scale, lambda m, h: m(m(h).reshape(-1, 4)).reshape(h.shape)),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_at_full_speed(case: str) -> None:
    """In batches of four, as many as the table has rows, of three and of two."""
    torch.manual_seed(0)
    make, through = CASES[case]
    model = Around(make(), through)
    batches = [{"x": torch.randn(rows, 5, 4)} for rows in (4, 3, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = diagonal_fisher(model, batches)
    assert_same_fisher(found, reference_fisher(model, batches))


class Attention(nn.Module):
    """Its bias table is looked up once for all examples; its scale belongs to a module that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.bias = nn.Linear(4, 4), nn.Embedding(9, 4)
        self.scales = nn.ParameterDict({"default": nn.Parameter(torch.randn(4))})

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        bias = self.bias(torch.arange(x.shape[1])).T.tanh()
        scores = self.query(x) @ (x * self.scales["default"]).transpose(1, 2)
        return (scores + bias.mean(0)).softmax(-1) @ x, None


def test_gradients_come_from_the_smallest_module_that_sees_examples() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(50, 4), nn.Linear(4, 3)
            self.layers = nn.ModuleList(Attention() for _ in range(2))

        def forward(self, ids: Tensor) -> Tensor:
            h = self.embedding(ids)
            for layer in self.layers:
                h = layer(h)[0]
            return self.head(h.mean(1))

    model = Model()
    batches = [{"ids": torch.randint(50, (rows, 6))} for rows in (4, 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Estimation(model, BackwardVectors()) as estimation:
            for batch in batches:
                estimation.add(batch)
            larger = estimation._verdict.larger if estimation._verdict is not None else set()
            found = estimation.result().diagonal
    assert larger == {f"layers.{i}.{name}" for i in range(2) for name in ("bias.weight", "scales.default")}
    assert_same_fisher(found, reference_fisher(model, batches))


def test_a_module_that_cannot_be_differentiated_alone_is_left_to_autograd() -> None:
    class Fickle(nn.Module):
        """Refuses to be called outside the model's own pass."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))
            self.allowed = False

        def forward(self, x: Tensor) -> Tensor:
            if not self.allowed:
                raise LookupError("not now")
            return x * self.weight

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.fickle, self.head = nn.Linear(4, 4), Fickle(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            self.fickle.allowed = True
            try:
                return self.head(self.fickle(h).tanh())
            finally:
                self.fickle.allowed = False

    model = Model()
    batches = [{"x": torch.randn(5, 4)}]
    with pytest.warns(UserWarning, match=r"1 parameters are not used in the usual way \(first: fickle\.weight\)"):
        found = diagonal_fisher(model, batches)
    assert_same_fisher(found, reference_fisher(model, batches))


@pytest.mark.parametrize(
    ("one", "three", "axis"),
    [((1, 7), (3, 7), 0), ((7, 1, 4), (7, 3, 4), 1), ((5, 4), (15, 4), 0), ((2, 3), (2, 3), None)],
)
def test_the_examples_axis_is_the_one_that_grows(one: Any, three: Any, axis: int | None) -> None:
    module: nn.Module = nn.Identity()
    shapes = [Shapes((shape,), (shape,)) for shape in (one, three)]
    found = layouts_of([{module: [shapes[0]]}] * 2, {module: [shapes[1]]}, 3)
    assert found == {module: [Layout((axis,), (axis,))]}


@pytest.mark.parametrize(
    ("singles", "three"),
    [([(2, 4), (1, 4)], (5, 4)), ([(2, 4), (2, 4)], (5, 4)), ([(1, 2), (1, 2)], (3, 6)), ([(1, 2), (1, 2)], (3, 2, 1))],
    ids=["rows by content", "rows that do not add up", "two axes", "another number of axes"],
)
def test_what_does_not_grow_with_the_examples_has_no_layout(singles: list[Any], three: Any) -> None:
    module: nn.Module = nn.Identity()
    recordings = [{module: [Shapes((shape,), (shape,))]} for shape in singles]
    assert layouts_of(recordings, {module: [Shapes((three,), (three,))]}, 3) == {}


def test_a_mask_that_the_checked_examples_did_not_need() -> None:
    layout = Layout((0, "unseen"), (0,))
    assert layout.of(Shapes(((4, 7), None), ((4, 7),)), 4) == Layout((0, "unseen"), (0,))
    assert layout.of(Shapes(((4, 7), (4, 1, 7, 7)), ((4, 7),)), 4) == Layout((0, 0), (0,))
    assert layout.of(Shapes(((4, 7), (1, 1, 7, 7)), ((4, 7),)), 4) == Layout((0, None), (0,))
    assert layout.of(Shapes(((4, 4), (4, 4)), ((4, 4),)), 4) is None  # of the examples, or of the positions?
    assert layout.of(Shapes(((4, 7), (5, 7)), ((4, 7),)), 4) is None
