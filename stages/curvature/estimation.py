"""Estimating curvature statistics a batch at a time."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from stages.curvature.accumulators import ACCUMULATORS, Accumulator, GradientProducts, InputProducts
from stages.curvature.autograd import add_by_autograd, warn_of_slowness, watched
from stages.curvature.batches import Batch, batch_size, device_of, model_inputs, model_outputs, padding_masks
from stages.curvature.capture import Capture
from stages.curvature.check import Verdict, compare_with_autograd, input_layouts
from stages.curvature.errors import CurvatureError, UnsupportedModelError
from stages.curvature.linear import by_onednn
from stages.curvature.rules import Linear, Rule, rule_for
from stages.curvature.sums import Sums, WeightSums
from stages.curvature.units import Unit, owners
from stages.curvature.vectors import BackwardVectors

DIAGONAL = ("diagonal",)
STATISTICS = (*DIAGONAL, *ACCUMULATORS)


@dataclass(frozen=True)
class CurvatureStatistics:
    """Means over examples, in float32; what was not asked for is empty.

    Attributes:
        diagonal: parameter name → diagonal of the Fisher, of the parameter's shape.
        factors: name of an accumulator → name of a Linear's weight → what it has found of the weight.
        transposed: those weights in `factors` that are stored as [in, out], as transformers' Conv1D has it; the others
            are [out, in].
    """

    diagonal: dict[str, Tensor]
    factors: dict[str, dict[str, Tensor]]
    transposed: frozenset[str]

    @property
    def input_factors(self) -> dict[str, Tensor]:
        """Name of a Linear's weight → A [in, in], the mean of x xᵀ over all positions that are no padding.

        A is RegMean's Gram matrix divided by the number of positions.
        """
        return self.factors.get(InputProducts.name, {})

    @property
    def output_factors(self) -> dict[str, Tensor]:
        """Name of a Linear's weight → G [out, out], the mean over examples of Σ_t E[g_t g_tᵀ].

        g_t is the gradient of the log-likelihood at position t of its output. G ⊗ A approximates the weight's block of
        the Fisher, and is that of one example with one position (Martens & Grosse 2015, eq. 1; with weights shared by
        positions, Eschenhagen et al. 2023, "K-FAC-expand").
        """
        return self.factors.get(GradientProducts.name, {})


class Estimation:
    """`curvature_statistics`, a batch at a time: for callers that save, resume, distribute or retry.

    A context manager: inside it the model is in eval mode and its parameters take no gradients.

    Args:
        model: as for `curvature_statistics`, and so are `parameters`, `statistics` and `accumulators`.
        vectors: where backward passes start.
        parameters: names to restrict to.
        statistics: what to estimate.
        accumulators: what else to estimate.

    Attributes:
        sums: what has been added so far; `sums.examples` is their number.
        torn: whether an exception came while a batch was being added to the sums, which are then good for nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        vectors: BackwardVectors,
        parameters: Collection[str] | None = None,
        statistics: Collection[str] = DIAGONAL,
        accumulators: Collection[Accumulator] = (),
    ) -> None:
        if unknown := sorted(set(statistics) - set(STATISTICS)):
            raise CurvatureError(f"unknown statistic {unknown[0]!r}; known: {', '.join(STATISTICS)}")
        self._model = model
        self._vectors = vectors
        self._verdict: Verdict | None = None
        self._units: Sequence[Unit] | None = None  # found once, by the first batch
        self._slow: set[str] = set()
        self._warned = False
        self._frozen = ExitStack()
        self.torn = False
        selected = _selected(model, parameters)
        named = [each for name, those in ACCUMULATORS.items() if name in statistics for each in those]
        wanted = {each.name: each for each in [*named, *accumulators]}
        self._linear = _linear_weights(model, selected) if wanted else {}
        sizes = {name: rule.sizes(selected[name]) for name, rule in self._linear.items()}
        self.sums = Sums(
            diagonal={
                name: torch.zeros_like(parameter, dtype=torch.float32)
                for name, parameter in selected.items()
                if "diagonal" in statistics
            },
            factors=[
                WeightSums(each, {name: each.zeros(*size, selected[name]) for name, size in sizes.items()})
                for each in wanted.values()
            ],
        )

    def __enter__(self) -> Self:
        for module in self._model.modules():
            self._frozen.callback(setattr, module, "training", module.training)
            # A cache of keys and values would be written into again wherever a module is called by itself.
            config: Any = getattr(module, "config", None)
            if getattr(config, "use_cache", False) is True:
                self._frozen.callback(setattr, config, "use_cache", True)
                config.use_cache = False
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
        return bool(self.sums.diagonal or self.sums.weights("gradients"))

    @property
    def slow(self) -> frozenset[str]:
        """The parameters that are left to autograd, one example at a time, as far as batches have shown."""
        return frozenset(self._slow)

    def check(self, batch: Batch) -> None:
        """Compare the hooks with autograd on the first examples of a batch; the first `add` does it if nobody did.

        Without backward passes there is nothing to compare.

        Raises:
            UnsupportedModelError: the model mixes its examples.
            CurvatureError: it is no batch.
        """
        batch_size(batch)
        if self.needs_gradients:
            self._compare(batch)
        else:
            modules = owners(self._model, self.sums.weights("inputs"))
            layouts = input_layouts(self._model, batch, modules)
            self._units = [
                Unit(module, names, rule_for(module), layouts.get(module, ())) for module, names in modules.items()
            ]

    def _compare(self, batch: Batch) -> None:
        zeros = {
            # The sums themselves serve, unless they are in use.
            name: self.sums.diagonal[name]
            if name in self.sums.diagonal and self.sums.examples == 0
            else torch.zeros_like(self._model.get_parameter(name), dtype=torch.float32)
            for name in dict.fromkeys([*self.sums.diagonal, *self.sums.weights("gradients")])
        }
        with torch.enable_grad():
            self._verdict = compare_with_autograd(self._model, batch, zeros)
        self.sums.drop_factors(self._verdict.wrong | self._verdict.larger)  # nobody observes these weights' own modules
        self._units = self._verdict.units
        self._slow = self._verdict.wrong & self.sums.diagonal.keys()

    def add(self, batch: Batch, first: int | None = None) -> None:
        """Add a batch's examples.

        Args:
            batch: dict of batch-first tensors.
            first: number of its first example among all examples, which its draws belong to; by default, examples are
                numbered as they come.
        """
        if self._units is None:
            self.check(batch)
        if self.needs_gradients:
            self._add_with_gradients(batch, self.sums.examples if first is None else first)
        else:
            capture = Capture(self._units or [], self.sums, batch_size(batch), padding_masks(batch))
            with torch.no_grad(), capture, by_onednn(device_of(batch)):
                self.torn = True
                self._model(**model_inputs(self._model, batch))
        self.sums.examples += batch_size(batch)
        self.torn = False

    def _add_with_gradients(self, batch: Batch, first: int) -> None:
        assert self._verdict is not None
        unknown = self._verdict.unknown & self.sums.diagonal.keys()
        by_hooks = {name: total for name, total in self.sums.diagonal.items() if name not in self._slow | unknown}
        capture = Capture(
            self._units or [],
            replace(self.sums, diagonal=by_hooks),
            batch_size(batch),
            padding_masks(batch),
            self._verdict.picked,
            self._verdict.expand,
        )
        with torch.enable_grad(), watched(self._model, unknown) as arrived, capture:
            self.torn = bool(self.sums.weights("inputs"))  # they are added to in the forward pass
            with by_onednn(device_of(batch)):
                outputs = model_outputs(self._model, batch)
            self._refuse_changed_use(capture, self._slow | unknown)
            vectors = self._vectors.of(outputs.detach(), batch, first)
            self.torn = True
            for position, vector in enumerate(vectors):
                capture.backward(outputs, vector, last=position == len(vectors) - 1)
        self._slow |= capture.failed
        left = sorted(self._slow | arrived)
        if left:
            if not self._warned:
                warn_of_slowness(left)
            self._warned = True
            with torch.enable_grad():
                add_by_autograd(self._model, batch, {name: self.sums.diagonal[name] for name in left}, vectors)

    def _refuse_changed_use(self, capture: Capture, unverified: Collection[str]) -> None:
        """Hooks rely on modules that give rows for each example, as in the comparison with autograd, in every batch."""
        if changed := sorted((self.sums.diagonal.keys() & capture.not_by_example) - set(unverified)):
            raise UnsupportedModelError(
                f"the module of {changed[0]} sees each example once in one batch and not so in another (a router's "
                "expert?); leave the parameter out"
            )
        if lacking := sorted(self.sums.weights("gradients") & capture.not_by_example):
            raise UnsupportedModelError(
                f"the module of {lacking[0]} is not called example by example, so its factors cannot be had; "
                "leave the parameter out"
            )

    def result(self) -> CurvatureStatistics:
        """The means over what has been added, in the memory of the sums, which are empty from then on.

        Raises:
            CurvatureError: no examples have been added.
        """
        sums, examples = self.sums, self.sums.examples
        if examples == 0:
            raise CurvatureError("there are no examples to estimate a Fisher from")
        self.sums = Sums({}, [])
        factors = sums.results()
        return CurvatureStatistics(
            diagonal={name: total.div_(examples) for name, total in sums.diagonal.items()},
            factors=factors,
            transposed=frozenset(name for found in factors.values() for name in found if self._linear[name].transposed),
        )


def _selected(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    owned = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if names is None:
        return owned
    if unknown := sorted(set(names) - owned.keys()):
        raise CurvatureError(f"the model has no parameter {unknown[0]!r}")
    return {name: parameter for name, parameter in owned.items() if name in names}


def _linear_weights(model: nn.Module, names: Collection[str]) -> dict[str, Linear]:
    """Weights that belong to Linear modules of one kind only: name → their rule."""
    rules: defaultdict[str, set[Rule | None]] = defaultdict(set)
    for module, own in owners(model, names).items():
        for key, name in own.items():
            rules[name].add(rule_for(module) if key == "weight" else None)
    return {name: rule for name, (rule, *others) in rules.items() if isinstance(rule, Linear) and not others}
