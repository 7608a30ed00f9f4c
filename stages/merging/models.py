"""What a merge method works on: the models that take part, with what is known about them."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from stages.merging.methods.isotropic.options import Isotropic
from stages.merging.streaming import chunks
from stages.merging.token_rows import TokenRows
from stages.storage.checkpoint import BaseWeights
from stages.storage.statistic_files import StatisticFiles
from stages.storage.tensors import TensorFiles

NumberT = TypeVar("NumberT")

# The name of a tensor → the merged tensor, flat, in one or many pieces, each good until the next is asked for.
Rule = Callable[[str], Iterator[Tensor]]


@dataclass(frozen=True)
class Models:
    """The models that take part in a merge, the target first; every sequence is in their order.

    Attributes:
        names: what they are called.
        checkpoints: their weights.
        coefficients: λ, summing to 1. The target is here even if its λ is zero, the others only if theirs is not.
        statistics: what the method needs to know of each model, by the statistic's name.
        base: the weights that all were fine-tuned from, if the method needs them.
        further: Fishers of models that have no part in the merge, by the option that names them.
        averaged: the names of the tensors that the method merges; the others are copied.
        dtype: what to compute in.
        numbers: what `once` has found; shared by all λ at which the same models are merged.
        rows: how rows are matched, where the models' vocabularies differ. A rule is then asked for parts of such
            tensors: the rows that just these models have, which all files have under a name of their own.
    """

    names: Sequence[str]
    checkpoints: Sequence[TensorFiles]
    coefficients: Sequence[float]
    statistics: Mapping[str, Sequence[StatisticFiles]]
    base: BaseWeights | None
    further: Mapping[str, StatisticFiles]
    averaged: frozenset[str]
    dtype: torch.dtype
    numbers: dict[tuple[Hashable, ...], Any]
    rows: TokenRows | None = None

    def once(self, key: tuple[Hashable, ...], compute: Callable[[], NumberT]) -> NumberT:
        """A number that does not depend on λ: found where it is first asked for, and kept for a search's next points.

        Args:
            key: what it is, and of which models and tensors.
            compute: finds it.
        """
        key = (self.dtype, *key)
        if key not in self.numbers:
            self.numbers[key] = compute()
        return self.numbers[key]

    def parts(self, model: int) -> list[str]:
        """The names of all that is merged of a model: tensors, and of those with a row per token the parts it has."""
        if self.rows is None:
            return sorted(self.averaged)
        return sorted({*self.averaged - self.rows.tensors, *self.rows.parts_of(self.names[model])})

    def chunks(self, name: str, files: Sequence[TensorFiles]) -> Iterator[list[Tensor]]:
        """The tensor `name` of each of the files, chunk by chunk; see `stages.merging.streaming.chunks`."""
        return chunks([(each, name) for each in files], self.dtype)

    def base_has(self, name: str) -> bool:
        """Whether the base has the tensor `name`; heads it often lacks."""
        return self.base is not None and self.base.name_of(name) is not None

    def base_and_values(self, name: str, models: Sequence[int] | None = None) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The base's and the (or some) models' values of the tensor `name`, chunk by chunk."""
        assert self.base is not None
        own = self.base.name_of(name)
        assert own is not None
        chosen = range(len(self.checkpoints)) if models is None else models
        sources = [(self.base.tensors, own), *((self.checkpoints[i], name) for i in chosen)]
        return ((base, values) for base, *values in chunks(sources, self.dtype))

    def where_the_base_has_it(self, rule: Rule) -> Rule:
        """`rule` for what the base has; the average of the models for the rest."""
        from stages.merging.methods.isotropic import rule as isotropic

        averaged = isotropic.rule(Isotropic(), self)
        return lambda name: rule(name) if self.base_has(name) else averaged(name)

    def has_factor(self, kind: str, name: str) -> bool:
        """Whether the weight `name` has factors (all models have the same: that has been checked)."""
        first = self.statistics[kind][0]
        return first.kind.keys(name)[0] in first.tensors.specs

    def factors(self, kind: str, part: str, name: str) -> list[Tensor]:
        """Every model's `part` of the statistic `kind` of the weight `name`, in the type it is stored in."""
        return [each.tensors.read(each.kind.key(part, name)) for each in self.statistics[kind]]

    def matrices(self, kind: str, name: str) -> list[Tensor]:
        """The models' weights `name`, as [out, in]."""
        return [
            self.as_matrix(kind, name, files.read_as(name, self.dtype).to(self.dtype)) for files in self.checkpoints
        ]

    def as_matrix(self, kind: str, name: str, values: Tensor) -> Tensor:
        """A weight's values as [out, in], however it is stored."""
        stored = values.reshape(self.checkpoints[0].specs[name].shape)
        return stored.T if self._is_transposed(kind, name) else stored

    def as_stored(self, kind: str, name: str, matrix: Tensor) -> Tensor:
        """The values of a weight [out, in], flat, as they are stored."""
        return (matrix.T if self._is_transposed(kind, name) else matrix).reshape(-1)

    def _is_transposed(self, kind: str, name: str) -> bool:
        return self.statistics[kind][0].is_transposed(name)
