"""What every tensor of a merge is, at given λ: copied, merged by the method, or merged by groups of rows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, SupportsFloat

import torch
from torch import Tensor

from stages.merging.ingredients import Ingredients
from stages.merging.models import Models, Rule
from stages.merging.rules import method_rule
from stages.merging.streaming import chunks, places
from stages.merging.token_rows import Group
from stages.running.errors import InputError
from stages.storage.statistic_files import bad_value
from stages.storage.tensors import TensorFiles, TensorSpec

Precision = Literal["float32", "float64"]


def merging_at(
    ingredients: Ingredients, coefficients: Mapping[str, SupportsFloat], precision: Precision = "float32"
) -> "Merging":
    """The merge of the ingredients with these λ, which are divided by their sum.

    Raises:
        InputError: they are not finite, not positive, or not of these models.
    """
    models = ingredients.checkpoints
    if unknown := sorted(coefficients.keys() - models.keys()):
        raise InputError(f"coefficients name the model {unknown[0]}, which is not among the checkpoints")
    if missing := sorted(models.keys() - coefficients.keys()):
        raise InputError(f"coefficients lack the model {missing[0]}")
    try:
        λs = {name: float(coefficients[name]) for name in models}  # of NumPy too
    except (TypeError, ValueError):
        raise InputError("coefficients must be numbers, one per model") from None
    if any(not (math.isfinite(λ) and λ >= 0) for λ in λs.values()) or not any(λs.values()):
        raise InputError("coefficients must be finite and not negative, and at least one positive")
    total = math.fsum(λs.values())  # the same in any order
    return Merging(ingredients, {name: λ / total for name, λ in λs.items()}, precision)


@dataclass(frozen=True)
class Merging:
    """A merge at given λ (summing to 1): what every tensor of the result is."""

    ingredients: Ingredients
    coefficients: Mapping[str, float]
    precision: Precision

    @cached_property
    def copied(self) -> dict[str, str]:
        """Tensors that are taken as they are, and the model they are taken from."""
        it = self.ingredients
        copied = dict.fromkeys(sorted(it.kept & it.target.tensors.specs.keys()), it.target_name)
        if (sole := self._sole(self.coefficients)) is not None:
            whole = it.target.tensors.specs.keys() - self._by_token
            return dict.fromkeys(sorted(whole), sole) | copied
        return dict.fromkeys(sorted(it.constants), it.target_name) | copied

    @property
    def _by_token(self) -> frozenset[str]:
        """The names of the tensors that are merged by groups of rows."""
        rows = self.ingredients.rows
        return frozenset() if rows is None else rows.tensors

    def _sole(self, coefficients: Mapping[str, float]) -> str | None:
        """The model that is taken as it is: the only one with a positive λ, if the method keeps it."""
        sole = [name for name, λ in coefficients.items() if λ > 0]
        return sole[0] if len(sole) == 1 and self.ingredients.options.keeps_single_model else None

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """What is written: of the target's types, or of the model's that a tensor is copied from."""
        it, sole = self.ingredients, self._sole(self.coefficients)
        sources = dict.fromkeys(self._by_token, sole or it.target_name) | self.copied
        specs = {
            name: it.checkpoints[sources.get(name, it.target_name)].tensors.specs[name]
            for name in it.target.tensors.specs
        }
        for name in self._by_token:
            assert it.rows is not None
            specs[name] = replace(specs[name], shape=(len(it.rows.result), *specs[name].shape[1:]))
        return specs | {copy: specs[name] for copy, name in it.target.copies.items()}

    @cached_property
    def models(self) -> Models:
        """What the method works on."""
        averaged = frozenset(self.ingredients.target.tensors.specs.keys() - self.copied.keys())
        return self._models_at(self.coefficients, averaged)

    def _models_at(self, coefficients: Mapping[str, float], averaged: frozenset[str]) -> Models:
        it, seen = self.ingredients, self.ingredients.seen
        names = [name for name, λ in coefficients.items() if λ > 0 or name == it.target_name]
        return Models(
            names=names,
            checkpoints=[seen.checkpoints[name] for name in names],
            coefficients=[coefficients[name] for name in names],
            statistics={kind: [files[name] for name in names] for kind, files in seen.statistics.items()},
            base=seen.base,
            further=it.further,
            averaged=averaged,
            dtype=getattr(torch, self.precision),
            numbers=it.numbers,
            rows=it.rows,
        )

    @cached_property
    def _group_rules(self) -> list[tuple[Group, Rule]]:
        """How the rows of each group are merged: among the models that have them, with λ that sum to 1 among these.

        Where none of these has a positive λ, they weigh alike.
        """
        it, found = self.ingredients, list[tuple[Group, Rule]]()
        averaged = frozenset(it.target.tensors.specs.keys() - it.kept - it.constants)
        for group in it.rows.groups if it.rows is not None else ():
            total = math.fsum(self.coefficients[name] for name in group.models)
            λs = {name: self.coefficients[name] / total if total else 1 / len(group.models) for name in group.models}
            sole = self._sole(λs)
            rule = method_rule(it.options, self._models_at(λs, averaged)) if sole is None else self._copy_of(sole)
            found.append((group, rule))
        return found

    def _copy_of(self, model: str) -> Rule:
        """The rule that takes a model's tensors as they are."""
        files = self.ingredients.seen.checkpoints[model]
        stored = {name: getattr(torch, spec.dtype) for name, spec in files.specs.items()}
        return lambda name: (values for (values,) in chunks([(files, name)], stored[name]))

    def _merged_by_token(self, name: str) -> Tensor:
        """The merged tensor `name`, which has a row per token, flat."""
        spec = self.specs[name]
        merged = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype)).reshape(spec.shape[0], -1)
        for group, rule in self._group_rules:
            rows = merged.new_empty(len(group.places) * merged.shape[1])
            place = 0
            for piece in rule(group.part(name)):
                rows[place : place + piece.numel()] = piece
                place += piece.numel()
            merged[group.places] = rows.view(-1, merged.shape[1])
        return merged.reshape(-1)

    @cached_property
    def _rule(self) -> Rule:
        return method_rule(self.ingredients.options, self.models)

    def exact(self, name: str) -> Tensor:
        """The merged tensor `name` in the precision that it is computed in, not rounded to what is written.

        Raises:
            InputError: an input has a NaN or an infinite entry, or the result overflows.
        """
        name = self.ingredients.target.copies.get(name, name)
        if name in self.copied:
            files = self.ingredients.checkpoints[self.copied[name]].tensors
            found = files.read_as(name, self.models.dtype).to(self.models.dtype)
        else:
            found = torch.cat([piece.reshape(-1).clone() for piece in self._rule(name)])
        self.refuse_infinite(name, found)
        return found.reshape(self.specs[name].shape)

    def refuse_infinite(self, name: str, values: Tensor) -> None:
        """Refuse values of the merged tensor `name` of which one is not finite, by the input that it comes from.

        Raises:
            InputError: an input has a NaN or an infinite entry; or none has, so that the result overflows.
        """
        # One sum finds any NaN or infinity of any input, since all of them enter with a weight; whether it is one
        # or only the sum that overflows, and which input had it, is looked up then.
        if values.is_floating_point() and not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
            self._blame(name)
            raise InputError(f"merging the tensor {name} overflows {values.dtype}")

    def prepare(self) -> None:
        """Do what must be known before the first tensor (norms, thresholds), which `merged` would do otherwise."""
        if self.models.averaged - self._by_token:
            _ = self._rule
        _ = self._group_rules

    def merged(self, name: str) -> Iterator[Tensor]:
        """The merged tensor `name`, flat, in pieces, in the type of its spec; a piece is good until the next.

        Raises:
            InputError: an input has a NaN or an infinite entry, or the result overflows its type.
        """
        name = self.ingredients.target.copies.get(name, name)
        dtype = getattr(torch, self.specs[name].dtype)
        if name in self.copied:
            files = self.ingredients.checkpoints[self.copied[name]].tensors
            pieces: Iterator[Tensor] = (values for (values,) in chunks([(files, name)], dtype))
        elif name in self._by_token:
            pieces = iter([self._merged_by_token(name)])
        else:
            pieces = self._rule(name)
        for values in pieces:
            piece = values.to(dtype)
            self.refuse_infinite(name, piece)
            yield piece

    def _blame(self, name: str) -> None:
        """Name the input whose tensor has a value that should not be there, if one has."""
        for files, own, what in self._inputs(name):
            values = files.read(own).reshape(-1)
            for place in places(values.numel()):
                if not torch.isfinite(values[place]).all():
                    raise InputError(
                        f"{files.file}: tensor {own} has {bad_value(values[place])} entry; make or fetch {what} again"
                    )

    def _inputs(self, name: str) -> Iterator[tuple[TensorFiles, str, str]]:
        """What the merged tensor `name` is made of: files, their name of the tensor, and what a message calls them."""
        it = self.ingredients
        models = [self.copied[name]] if name in self.copied else self.models.names
        if name in self._by_token:  # rows may come from a model whose λ is zero
            models = list(it.checkpoints)
        yield from ((it.checkpoints[model].tensors, name, f"the checkpoint of {model}") for model in models)
        if name in self.copied:
            return
        if it.base is not None and (own := it.base.name_of(name)) is not None:
            yield it.base.tensors, own, "the base"
        for statistic in [
            *(those[model] for those in it.statistics.values() for model in models),
            *it.further.values(),
        ]:
            for key in statistic.kind.keys(name):
                if key in statistic.tensors.specs:
                    yield statistic.tensors, key, f"this {statistic.tensors.stem}"
