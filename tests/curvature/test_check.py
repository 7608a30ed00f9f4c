"""What the check with autograd finds: small gradients, parameters that one example does not use, types."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.curvature import BackwardVectors, Estimation, UnsupportedModelError, diagonal_fisher
from tests.curvature.reference import assert_same_fisher, reference_fisher


class Faint(nn.Module):
    """A table of positions, looked up once for all examples, that hardly matters."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = scale
        self.table, self.layer, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.table(torch.arange(x.shape[1]))
        return self.head((self.layer(x) + self.scale * positions).tanh().mean(1))


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-9, 1e-14])
def test_what_is_not_seen_by_example_is_exact_however_small(scale: float) -> None:
    model = Faint(scale)
    batches = [{"x": torch.randn(4, 5, 6)}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = diagonal_fisher(model, batches)
    wanted = reference_fisher(model, batches)["table.weight"]
    assert float(wanted.max()) > 0
    assert float((found["table.weight"].double() - wanted).norm() / wanted.norm()) < 1e-5


def test_what_is_not_seen_by_example_is_not_zero_in_bfloat16() -> None:
    batch = {"x": torch.randn(4, 5, 6)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = diagonal_fisher(Faint(1e-3).bfloat16(), [{"x": batch["x"].bfloat16()}])
    wanted = reference_fisher(Faint(1e-3), [batch])["table.weight"]
    assert float((found["table.weight"].double() - wanted).norm() / wanted.norm()) < 0.1


class Occasional(nn.Module):
    """Its spare weight is used by examples with a positive first entry only, and behind its module's back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.spare, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        if bool((x[:, 0] > 0).any()):
            hidden = hidden + (x[:, :1] > 0) * (x @ self.spare.weight.T)
        return self.head(hidden.tanh())


def test_a_parameter_that_the_checked_examples_do_not_use_is_noticed_where_it_is_used() -> None:
    generator = torch.Generator().manual_seed(1)
    without, with_it = -torch.rand(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    model = Occasional()
    batches = [{"x": without}, {"x": with_it}, {"x": without}]
    with pytest.warns(UserWarning, match=r"1 parameters are not used in the usual way \(first: spare\.weight\)"):
        found = diagonal_fisher(model, batches)
    wanted = reference_fisher(model, batches)
    assert float(wanted["spare.weight"].max()) > 0
    assert_same_fisher(found, wanted)


class Dead(nn.Module):
    """A unit that the first example leaves at zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(2, 1), nn.Linear(1, 3)
        with torch.no_grad():
            self.layer.weight.fill_(1)
            self.layer.bias.fill_(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).relu())


@pytest.mark.parametrize(
    "first", [[[-1.0, -1.0], [1.0, 1.0]], [[-1.0, -1.0]] * 2], ids=["the next is alive", "all dead"]
)
def test_a_unit_that_is_dead_for_the_first_example(first: list[list[float]]) -> None:
    model = Dead()
    batches = [{"x": torch.tensor(first)}, {"x": torch.rand(3, 2)}]
    with warnings.catch_warnings():
        warnings.simplefilter("error" if first[1][0] > 0 else "ignore")
        found = diagonal_fisher(model, batches)
    assert_same_fisher(found, reference_fisher(model, batches))


def test_the_model_keeps_its_types_buffers_gradients_and_settings() -> None:
    class Config:
        use_cache = True

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config()
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)
            self.register_buffer("shift", torch.ones(4, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            assert not self.config.use_cache
            return self.head(self.norm(x + self.get_buffer("shift")))

    model = Model()
    model.head.weight.grad = torch.ones(3, 4)
    before = {name: (value.dtype, value.data_ptr()) for name, value in model.state_dict().items()}
    diagonal_fisher(model, [{"x": torch.randn(5, 4)}])
    assert {name: (value.dtype, value.data_ptr()) for name, value in model.state_dict().items()} == before
    assert model.config.use_cache
    assert torch.equal(model.head.weight.grad, torch.ones(3, 4))


def test_a_model_that_has_no_float64_is_checked_in_its_own_type() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head, self.spare = nn.Linear(4, 4), nn.Linear(4, 3), nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64:
                raise RuntimeError("no kernel for float64")
            return self.head((self.layer(x) @ self.layer.weight).tanh())

    model = Narrow()
    with pytest.warns(UserWarning, match=r"\(first: layer\.weight\)"):
        found = diagonal_fisher(model, [{"x": torch.randn(5, 4)}])

    class Wide(Narrow):
        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.layer(x) @ self.layer.weight).tanh())

    torch.manual_seed(0)
    wide = Wide()
    wide.load_state_dict(model.state_dict())
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())
    again = [{"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(3))}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same_fisher(diagonal_fisher(model, again), reference_fisher(wide, again))


def test_parameters_that_are_not_in_memory_are_refused_by_name() -> None:
    model = nn.Sequential()
    model.add_module("input", nn.Linear(4, 3, device="meta"))
    with pytest.raises(UnsupportedModelError, match=r"parameter input\.weight is not in memory"):
        diagonal_fisher(model, [{"input": torch.randn(2, 4)}])


def test_what_is_slow_is_said_by_name() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x).tanh() @ self.layer.weight)

    with Estimation(Sly(), BackwardVectors()) as estimation:
        estimation.check({"x": torch.randn(3, 4)})
        assert estimation.slow == {"layer.weight"}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda z: {"logits": z}, None),
        (lambda z: {"scores": z}, "returns a dict without `logits`"),
        (lambda z: (z, z), "returns a tuple without `logits`"),
        (lambda z: z.sum(), "axis 0 is not the examples"),
    ],
)
def test_what_a_model_may_return(output: Any, message: str | None) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return output(self.head(x))

    batches = [{"x": torch.randn(5, 4)}]
    if message is not None:
        with pytest.raises(UnsupportedModelError, match=message):
            diagonal_fisher(Model(), batches)
        return
    plain = nn.Sequential()
    plain.add_module("input", Model().head)
    wanted = diagonal_fisher(plain, [{"input": batches[0]["x"]}])
    assert torch.equal(diagonal_fisher(Model(), batches)["head.weight"], wanted["input.weight"])
