"""The diagonal of the Fisher information, and K-FAC factors, from passes over examples."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from stages.curvature.capture import Capture, owners
from stages.curvature.check import (
    UnsupportedModelError,
    add_by_autograd,
    batch_size,
    compare_with_autograd,
    model_outputs,
    warn_of_slowness,
)
from stages.curvature.draws import Draws
from stages.curvature.likelihoods import LIKELIHOODS
from stages.curvature.rules import Linear, rule_for
from stages.curvature.sums import Sums

Estimator = Literal["exact", "sketch", "sampled", "empirical"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
Statistic = Literal["diagonal", "kfac", "gram"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
DIAGONAL: tuple[Statistic, ...] = ("diagonal",)


@dataclass(frozen=True)
class CurvatureStatistics:
    """Means over examples, in float32; what was not asked for is empty.

    Attributes:
        diagonal: parameter name → diagonal of the Fisher, of the parameter's shape.
        input_factors: name of a Linear's weight → A [in, in], the mean of x xᵀ over all positions that are no padding.
            A is RegMean's Gram matrix divided by the number of positions.
        output_factors: name of a Linear's weight → G [out, out], the mean over examples of Σ_t E[g_t g_tᵀ], g_t the
            gradient of the log-likelihood at position t of its output. G ⊗ A approximates the weight's block of the
            Fisher, and is that of one example with one position (Martens & Grosse 2015, eq. 1; with weights shared by
            positions, Eschenhagen et al. 2023, "K-FAC-expand").
    """

    diagonal: dict[str, Tensor]
    input_factors: dict[str, Tensor]
    output_factors: dict[str, Tensor]


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    likelihood: str = "categorical",
    estimator: Estimator = "exact",
    samples: int = 1,
    parameters: Collection[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The mean over examples of diag F(x) = E_{y∼p(y|x)} [∇ log p(y|x)]² (Matena & Raffel 2022, eq. 3 and 4).

    With z the model's outputs, J = ∂z/∂θ and Σ = L Lᵀ the likelihood's Fisher of the outputs, diag F is Σ_j (Jᵀ L_j)²
    over L's columns: one backward pass each, through one shared forward pass. For K classes there are K−1. What is
    squared is every example's own gradient, never a batch's mean.

    Hooks on the modules that own parameters turn their inputs and output gradients into squares. On an example of the
    first batch this is compared with autograd: a parameter for which they differ (it is used outside its module's call,
    say) is from then on differentiated by autograd, one example at a time: slow, exact, and announced by a warning.

    Inside `torch.autocast` the passes run in its type; squares are summed in float32 all the same.

    Args:
        model: called as `model(**batch)`; returns logits or an object with `.logits`. It is run in eval mode. Its
            mode, gradients, `requires_grad` flags and hooks are as before on return, also after an exception.
        batches: dicts of batch-first tensors. `labels` are not shown to the model; only `empirical` and token-level
            likelihoods look at them. No batch may be empty.
        likelihood: `categorical` (logits [B, K]), `bernoulli` ([B, K], multi-label), `gaussian` ([B, K], variance 1),
            `token` and `causal` ([B, T, K], summed over positions; in `causal`, position t predicts label t + 1).
        estimator: see `stages.curvature.likelihoods`.
        samples: draws per example, for `sketch` and `sampled`; one backward pass each.
        parameters: names to restrict to; all parameters without it.
        seed: of the draws; they belong to the examples' numbers, whatever batches these come in.
        progress: show a progress bar, if standard error is a terminal.

    Returns:
        Parameter name (as in `model.state_dict()`, a shared one once) → float32 tensor of its shape, on its device.

    Raises:
        UnsupportedModelError: the model mixes its examples (an output depends on the other examples of the batch).
        ValueError: unknown likelihood, estimator or parameter names, outputs of another shape than the likelihood's, an
            exact token-level Fisher of too many outputs, or no examples.
    """
    return curvature_statistics(
        model,
        batches,
        likelihood=likelihood,
        estimator=estimator,
        samples=samples,
        parameters=parameters,
        seed=seed,
        progress=progress,
    ).diagonal


def curvature_statistics(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    likelihood: str = "categorical",
    estimator: Estimator = "exact",
    samples: int = 1,
    parameters: Collection[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    statistics: Collection[Statistic] = DIAGONAL,
) -> CurvatureStatistics:
    """Several statistics from one pass over the examples.

    Args and errors are those of `diagonal_fisher`, and:
        statistics: `diagonal`; `kfac`, the factors A and G of every Linear (and transformers' Conv1D) whose weight is
            used by such modules only; `gram`, their A alone, which takes forward passes only.
    """
    with Estimation(
        model,
        likelihood=likelihood,
        estimator=estimator,
        samples=samples,
        parameters=parameters,
        seed=seed,
        statistics=statistics,
    ) as estimation:
        total = sum(map(batch_size, batches)) if isinstance(batches, Sequence) else None
        with tqdm(total=total, unit="example", desc="Fisher", disable=None if progress else True) as bar:
            for batch in batches:
                estimation.add(batch)
                bar.update(batch_size(batch))
        return estimation.result()


class Estimation:
    """`curvature_statistics`, a batch at a time: for callers that save, resume, distribute or retry.

    A context manager: inside it the model is in eval mode and its parameters take no gradients.

    Attributes:
        sums: what has been added so far; `sums.examples` is their number.
        torn: whether an exception came while a batch was being added to the sums, which are then good for nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        likelihood: str = "categorical",
        estimator: Estimator = "exact",
        samples: int = 1,
        parameters: Collection[str] | None = None,
        seed: int = 0,
        statistics: Collection[Statistic] = DIAGONAL,
    ) -> None:
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"unknown likelihood {likelihood!r}; known: {', '.join(sorted(LIKELIHOODS))}")
        if estimator not in ESTIMATORS:
            raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
        if unknown := sorted(set(statistics) - set(STATISTICS)):
            raise ValueError(f"unknown statistic {unknown[0]!r}; known: {', '.join(STATISTICS)}")
        if samples < 1:
            raise ValueError(f"samples = {samples}: must be at least 1")
        self._model = model
        self._likelihood = LIKELIHOODS[likelihood]
        self._estimator = estimator
        self._samples = samples
        self._seed = seed
        self._expand = True
        self._by_autograd: set[str] = set()
        self._unknown: set[str] = set()
        self._not_by_example: set[str] = set()
        self._checked = self._warned = False
        self._frozen = ExitStack()
        self.torn = False
        selected = _selected(model, parameters)
        linear = _linear_weights(model, selected) if {"kfac", "gram"} & set(statistics) else {}
        self.sums = Sums(
            diagonal={
                name: torch.zeros_like(parameter, dtype=torch.float32)
                for name, parameter in selected.items()
                if "diagonal" in statistics
            },
            inputs={
                name: weight.new_zeros(inputs, inputs, dtype=torch.float32)
                for name, (weight, inputs, _) in linear.items()
            },
            outputs={
                name: weight.new_zeros(outputs, outputs, dtype=torch.float32)
                for name, (weight, _, outputs) in linear.items()
                if "kfac" in statistics
            },
            positions={name: weight.new_zeros((), dtype=torch.int64) for name, (weight, _, _) in linear.items()},
        )

    def __enter__(self) -> Self:
        for module in self._model.modules():
            self._frozen.callback(setattr, module, "training", module.training)
        for parameter in self._model.parameters():
            self._frozen.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        self._model.eval()
        return self

    def __exit__(self, *_: object) -> None:
        self._frozen.close()

    @property
    def needs_gradients(self) -> bool:
        """Whether there are backward passes at all."""
        return bool(self.sums.diagonal or self.sums.outputs)

    def check(self, batch: Mapping[str, Tensor]) -> None:
        """Compare the hooks with autograd on the first examples of a batch; the first `add` does it if nobody did.

        Raises:
            UnsupportedModelError: the model mixes its examples.
        """
        zeros = {
            # The sums themselves serve, unless they are in use.
            name: self.sums.diagonal[name]
            if name in self.sums.diagonal and self.sums.examples == 0
            else torch.zeros_like(self._model.get_parameter(name), dtype=torch.float32)
            for name in dict.fromkeys([*self.sums.diagonal, *self.sums.outputs])
        }
        with torch.enable_grad():
            verdict = compare_with_autograd(self._model, batch, zeros)
        self._expand, self._unknown, self._not_by_example = verdict.expand, verdict.unknown, verdict.not_by_example
        self._by_autograd = verdict.wrong & self.sums.diagonal.keys()
        self._unknown &= self.sums.diagonal.keys()
        for name in verdict.wrong & self.sums.outputs.keys():  # not a plain Linear after all
            del self.sums.inputs[name], self.sums.outputs[name], self.sums.positions[name]
        self._checked = True

    def add(self, batch: Mapping[str, Tensor], first: int | None = None) -> None:
        """Add a batch's examples.

        Args:
            batch: dict of batch-first tensors.
            first: number of its first example among all examples, which its draws belong to; by default, examples are
                numbered as they come.
        """
        if self.needs_gradients:
            if not self._checked:
                self.check(batch)
            self._add_with_gradients(batch, self.sums.examples if first is None else first)
        else:
            with torch.no_grad(), Capture(self._model, self.sums, batch_size(batch), _masks(batch)):
                self.torn = True
                self._model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        self.sums.examples += batch_size(batch)
        self.torn = False

    def _add_with_gradients(self, batch: Mapping[str, Tensor], first: int) -> None:
        by_hooks = {name: total for name, total in self.sums.diagonal.items() if name not in self._by_autograd}
        sums = Sums(by_hooks, self.sums.inputs, self.sums.outputs, self.sums.positions)
        capture = Capture(self._model, sums, batch_size(batch), _masks(batch), self._expand)
        with torch.enable_grad(), capture:
            self.torn = bool(self.sums.inputs)  # they are added to in the forward pass
            outputs = model_outputs(self._model, batch)
            self._refuse_changed_use(capture.not_by_example)
            capture.leave_out(self._unknown)
            chosen = self._vectors(outputs.detach(), batch, first)
            self.torn = True
            for position, vector in enumerate(chosen):
                capture.backward(outputs, vector, last=position == len(chosen) - 1)
        by_autograd = self._by_autograd | (self._unknown & (capture.arrived | capture.not_by_example))
        if by_autograd:
            if not self._warned:
                warn_of_slowness(by_autograd)
            self._warned = True
            slow = {name: self.sums.diagonal[name] for name in sorted(by_autograd)}
            with torch.enable_grad():
                add_by_autograd(self._model, batch, slow, chosen)

    def result(self) -> CurvatureStatistics:
        """The means over what has been added; the sums stay as they are.

        Raises:
            ValueError: no examples have been added.
        """
        examples, sums = self.sums.examples, self.sums
        if examples == 0:
            raise ValueError("there are no examples to estimate a Fisher from")
        return CurvatureStatistics(
            diagonal={name: total / examples for name, total in sums.diagonal.items()},
            input_factors={name: total / sums.positions[name] for name, total in sums.inputs.items()},
            output_factors={name: total / examples for name, total in sums.outputs.items()},
        )

    def _refuse_changed_use(self, not_by_example: set[str]) -> None:
        """Hooks rely on modules that give an entry per example, as in the comparison with autograd, in every batch."""
        new = not_by_example - self._not_by_example - self._by_autograd - self._unknown
        if changed := sorted(new & self.sums.diagonal.keys()):
            raise UnsupportedModelError(
                f"the module of {changed[0]} sees each example once in one batch and not so in another (a router's "
                "expert?); leave the parameter out"
            )
        if lacking := sorted(not_by_example & self.sums.outputs.keys()):
            raise UnsupportedModelError(
                f"the module of {lacking[0]} is not called example by example, so its K-FAC factors cannot be had; "
                "leave the parameter out"
            )

    def _vectors(self, outputs: Tensor, batch: Mapping[str, Tensor], first: int) -> list[Tensor]:
        """The vectors whose backward passes' squares add up to the batch's Fisher."""
        with torch.no_grad():
            match self._estimator:
                case "exact":
                    return list(self._likelihood.columns(outputs, batch))
                case "empirical":
                    return [self._likelihood.observed(outputs, batch)]
                case "sketch":
                    draw: Callable[..., Tensor] = self._likelihood.sketch
                case "sampled":
                    draw = self._likelihood.sampled
            scale = self._samples**-0.5  # the squares of the draws are averaged
            return [draw(outputs, batch, Draws(self._seed, first, i)) * scale for i in range(self._samples)]


def _masks(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """[B, T] each: which positions are no padding."""
    return [batch[name] for name in ("attention_mask", "decoder_attention_mask") if name in batch]


def _selected(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    owned = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if names is None:
        return owned
    if unknown := sorted(set(names) - owned.keys()):
        raise ValueError(f"the model has no parameter {unknown[0]!r}")
    return {name: parameter for name, parameter in owned.items() if name in names}


def _linear_weights(model: nn.Module, names: Collection[str]) -> dict[str, tuple[Tensor, int, int]]:
    """Weights that belong to Linear modules only: name → weight, number of inputs, number of outputs."""
    found: dict[str, tuple[Tensor, int, int]] = {}
    others: set[str] = set()
    for module, own in owners(model, names).items():
        rule = rule_for(module)
        for key, name in own.items():
            if key == "weight" and isinstance(rule, Linear):
                weight = model.get_parameter(name).detach()
                found[name] = (weight, *rule.sizes(weight))
            else:
                others.add(name)
    return {name: entry for name, entry in found.items() if name not in others}
