"""K-FAC factors and Gram matrices against float64 sums written from their definitions."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
import transformers as t
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.curvature import (
    BackwardVectors,
    CurvatureStatistics,
    Estimation,
    TokenCategorical,
    curvature_statistics,
    diagonal_fisher,
)
from stages.curvature.accumulators import ACCUMULATORS, Side
from stages.curvature.likelihoods import Categorical
from stages.estimation.accumulators import accumulators
from stages.storage.statistics import FACTORS
from tests.curvature.reference import assert_same_fisher, reference_fisher
from tests.curvature.test_architectures import SMALL, labels, randomised, texts


def bert() -> nn.Module:
    torch.manual_seed(0)
    return randomised(t.BertForSequenceClassification(t.BertConfig(**SMALL, **labels(3)))).eval()


def reference_factors(
    model: nn.Module, batches: list[dict[str, Tensor]], modules: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A and G of Linear modules of a text classifier, one unpadded example and one class at a time, in float64."""
    model = model.double().eval()
    inputs: dict[str, list[Tensor]] = {name: [] for name in modules}
    a: dict[str, Tensor] = {}
    g: dict[str, Tensor] = {}
    examples = 0
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            used = int(batch["attention_mask"][row].sum())
            ends: dict[str, list[Tensor]] = {name: [] for name in modules}
            handles = []
            for name in modules:

                def remember(
                    _: nn.Module, x: tuple[Tensor, ...], y: Tensor, x_of: list[Tensor], y_of: list[Tensor]
                ) -> None:
                    x_of.append(x[0].detach().reshape(-1, x[0].shape[-1]))
                    y_of.append(y)

                hook = partial(remember, x_of=inputs[name], y_of=ends[name])
                handles.append(model.get_submodule(name).register_forward_hook(hook))
            log_p = (
                model(**{key: value[row : row + 1, :used] for key, value in batch.items()}).logits[0].log_softmax(-1)
            )
            for handle in handles:
                handle.remove()
            for log_p_y in log_p:
                for name in modules:
                    for gradient in torch.autograd.grad(log_p_y, ends[name], retain_graph=True):
                        flat = gradient.reshape(-1, gradient.shape[-1])
                        g[name] = g.get(name, torch.zeros(())) + log_p_y.exp().detach() * flat.T @ flat
            examples += 1
    for name in modules:
        x = torch.cat(inputs[name])
        a[name] = x.T @ x / len(x)
    return a, {name: value / examples for name, value in g.items()}


def assert_factors(found: CurvatureStatistics, wanted: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> None:
    for factors, reference in zip((found.input_factors, found.output_factors), wanted, strict=True):
        for name, value in reference.items():
            factor = factors[f"{name}.weight"]
            assert factor.dtype == torch.float32
            assert float((factor.double() - value).norm() / value.norm()) < 1e-5, name


def test_one_pass_gives_the_diagonal_and_the_factors_of_every_linear() -> None:
    model = bert()
    batches = texts()
    found = curvature_statistics(model, batches, statistics=("diagonal", "kfac"), progress=False)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(found.input_factors) == sorted(found.output_factors) == sorted(f"{name}.weight" for name in linear)
    assert found.transposed == frozenset()
    alone = diagonal_fisher(model, batches)
    assert all(torch.equal(found.diagonal[name], value) for name, value in alone.items())
    assert_factors(found, reference_factors(model, batches, linear))


def test_conv1d_and_layers_that_are_used_twice() -> None:
    torch.manual_seed(0)
    config = t.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **labels(3),
    )  # fmt: skip
    for model, name in (
        (t.GPT2ForSequenceClassification(config), "transformer.h.0.mlp.c_fc"),
        (
            t.AlbertForSequenceClassification(t.AlbertConfig(**SMALL, embedding_size=8, **labels(3))),
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn",
        ),
    ):
        found = curvature_statistics(randomised(model), texts(), statistics=["kfac"])
        assert not found.diagonal
        conv1d = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
        assert found.transposed == conv1d
        assert (f"{name}.weight" in conv1d) == isinstance(model, t.GPT2ForSequenceClassification)
        assert_factors(found, reference_factors(model, texts(), [name]))


def test_the_product_of_the_factors_is_the_fisher_of_one_example_with_one_position() -> None:
    model = nn.Sequential()
    model.add_module("input", nn.Linear(3, 2))
    batch = {"input": torch.randn(1, 3)}
    found = curvature_statistics(model, [batch], statistics=("diagonal", "kfac"))
    a, g = found.input_factors["input.weight"], found.output_factors["input.weight"]
    torch.testing.assert_close(torch.outer(g.diagonal(), a.diagonal()), found.diagonal["input.weight"])


def test_gram_takes_no_backward_pass() -> None:
    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return self.second(self.first(x))

    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    x = torch.randn(2, 3, 4)
    found = curvature_statistics(Forward(), [{"x": x, "attention_mask": mask}], statistics=["gram"])
    assert not found.diagonal
    assert not found.output_factors
    kept = x[mask.bool()]
    assert found.input_factors.keys() == {"first.weight", "second.weight"}
    torch.testing.assert_close(found.input_factors["first.weight"], kept.T @ kept / 3)


def test_a_weight_whose_own_module_is_not_called_has_no_gram_matrix_beside_a_diagonal() -> None:
    """Its gradients are taken from elsewhere, so its inputs are not seen: no mean of nothing, which is NaN."""

    class Borrowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.lent, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.linear(x, self.lent.weight).tanh())

    with pytest.warns(UserWarning, match="not used in the usual way"):
        found = curvature_statistics(Borrowed(), [{"x": torch.randn(4, 3)}], statistics=["diagonal", "gram"])
    assert found.input_factors.keys() == {"head.weight"}
    assert all(value.isfinite().all() for value in [*found.diagonal.values(), *found.input_factors.values()])


@pytest.mark.parametrize("statistics", [["gram"], ["kfac"], ["diagonal", "kfac"]])
def test_a_linear_that_no_example_goes_through_has_no_factors(statistics: list[str]) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.idle, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    found = curvature_statistics(Idle(), [{"x": torch.randn(4, 3)}], statistics=statistics)
    assert found.input_factors.keys() == {"head.weight"}
    assert found.output_factors.keys() == ({"head.weight"} if "kfac" in statistics else set())
    assert all(value.isfinite().all() for factors in found.factors.values() for value in factors.values())


def test_a_tied_weight_has_no_factors() -> None:
    model = t.T5ForConditionalGeneration(
        t.T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, dropout_rate=0.0
        )
    )  # fmt: skip
    ids = torch.randint(1, 20, (3, 5))
    batch = {"input_ids": ids, "decoder_input_ids": ids[:, :4]}
    found = curvature_statistics(model, [batch], likelihood=TokenCategorical(), estimator="sketch", statistics=["kfac"])
    assert "shared.weight" not in found.input_factors
    assert "decoder.block.0.layer.0.SelfAttention.q.weight" in found.output_factors


def test_a_weight_of_a_linear_and_a_conv1d_has_no_factors() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.there, self.back = nn.Linear(4, 3, bias=False), Conv1D(4, 3)
            self.there.weight = self.back.weight = nn.Parameter(torch.randn(3, 4))  # from 4 to 3, and from 3 to 4
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.back(self.there(x)))

    found = curvature_statistics(Both(), [{"x": torch.randn(5, 4)}], statistics=["kfac"])
    assert found.input_factors.keys() == {"head.weight"}
    assert not found.transposed


def test_masks_that_cannot_be_told_apart_are_refused() -> None:
    model = nn.Linear(2, 2)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model

        def forward(self, x: Tensor, attention_mask: Tensor, decoder_attention_mask: Tensor) -> Tensor:
            return self.layer(x)

    batch = {
        "x": torch.randn(2, 3, 2),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "decoder_attention_mask": torch.tensor([[1, 0, 0], [1, 1, 0]]),
    }
    with pytest.raises(ValueError, match="padded to one length"):
        curvature_statistics(Both(), [batch], statistics=["gram"])
    assert curvature_statistics(
        Both(), [batch | {"decoder_attention_mask": batch["attention_mask"]}], statistics=["gram"]
    )


class Squares:
    """The mean of the squares of what comes to one side of a Linear: for each position, or for each example."""

    def __init__(self, side: Side) -> None:
        self.name, self.adds = f"squares of {side}", side

    def zeros(self, inputs: int, outputs: int, like: Tensor) -> dict[str, Tensor]:
        size = inputs if self.adds == "inputs" else outputs
        return {"squares": like.new_zeros(size), "rows": like.new_zeros(())}

    def add(self, sums: Mapping[str, Tensor], rows: Tensor) -> None:
        sums["squares"].add_(rows.square().sum(0))
        sums["rows"].add_(len(rows))

    def result(self, sums: Mapping[str, Tensor], examples: int) -> Tensor:
        return sums["squares"] / (sums["rows"] if self.adds == "inputs" else examples)


def test_accumulators_of_ones_own() -> None:
    """Of inputs and of gradients, beside the statistics that have a name, which stay as they are."""
    model, batches = bert(), texts()
    own = [Squares("inputs"), Squares("gradients")]
    found = curvature_statistics(model, batches, statistics=("diagonal", "kfac"), accumulators=own, progress=False)
    alone = curvature_statistics(model, batches, statistics=("diagonal", "kfac"), progress=False)
    assert found.factors.keys() == alone.factors.keys() | {"squares of inputs", "squares of gradients"}
    for group in ("diagonal", "input_factors", "output_factors"):
        assert all(torch.equal(getattr(found, group)[name], value) for name, value in getattr(alone, group).items())
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for group, reference in zip(
        ("squares of inputs", "squares of gradients"), reference_factors(model, batches, linear), strict=True
    ):
        assert found.factors[group].keys() == {f"{name}.weight" for name in linear}
        for name, value in reference.items():
            factor, wanted = found.factors[group][f"{name}.weight"].double(), value.diagonal()
            assert float((factor - wanted).norm() / wanted.norm()) < 1e-5, name


def test_an_accumulator_of_inputs_takes_no_backward_pass() -> None:
    model = bert()
    found = curvature_statistics(model, texts(), statistics=(), accumulators=[Squares("inputs")], progress=False)
    estimation = Estimation(model, BackwardVectors(Categorical(), "exact"), None, (), [Squares("inputs")])
    assert not estimation.needs_gradients
    assert Estimation(model, BackwardVectors(Categorical(), "exact"), None, (), [Squares("gradients")]).needs_gradients
    assert found.factors.keys() == {"squares of inputs"}
    assert not found.diagonal


@pytest.mark.parametrize("name", FACTORS)
def test_the_descriptions_of_statistics_name_what_the_library_has_by_that_name(name: str) -> None:
    made = [type(each) for each in accumulators(FACTORS[name]).values()]
    assert made == [type(each) for each in ACCUMULATORS[name]]


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown statistic 'hessian'; known: diagonal, kfac, gram"):
        curvature_statistics(nn.Linear(2, 2), [], statistics=["hessian"])


@pytest.mark.parametrize("estimator", ["exact", "sketch", "sampled"])
def test_bfloat16_passes_are_summed_in_float32(estimator: str) -> None:
    """Under autocast: near the float32 result, and the check with autograd still finds the hooks right."""
    model = bert()
    with torch.autocast("cpu", torch.bfloat16):
        found = curvature_statistics(
            model, texts(), estimator=estimator, seed=3, statistics=("diagonal", "kfac"), progress=False  # type: ignore[arg-type]
        )  # fmt: skip
    wanted = curvature_statistics(model, texts(), estimator=estimator, seed=3, statistics=("diagonal", "kfac"))  # type: ignore[arg-type]
    for group in ("diagonal", "input_factors", "output_factors"):
        narrow, wide = getattr(found, group), getattr(wanted, group)
        everything = [torch.cat([value.flatten() for value in values.values()]) for values in (narrow, wide)]
        assert everything[0].dtype == torch.float32
        assert not torch.equal(*everything)
        assert float((everything[0] - everything[1]).norm() / everything[1].norm()) < 0.05


def test_a_model_in_bfloat16_is_near_its_float32_self() -> None:
    model = bert().bfloat16()
    found = diagonal_fisher(model, texts())
    wanted = reference_fisher(model.float(), texts())
    assert_same_fisher(
        {name: found[name] for name in ("classifier.weight",)}, {"classifier.weight": wanted["classifier.weight"]}, 0.1
    )
    assert all(value.dtype == torch.float32 for value in found.values())
