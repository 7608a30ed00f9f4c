"""All that goes into a merge, opened and checked once; what is done with each tensor depends on λ besides."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import torch
from torch import Tensor

from stages.merging.agreement import (
    all_are_vectors,
    check_heads_fit_body,
    check_same_bases,
    check_same_body,
    check_same_function,
    heads_agree,
    lacked_by_others,
    refuse_adapters,
    refuse_unequal,
)
from stages.merging.common_names import Spelled, common_names
from stages.merging.models import Models, Rule
from stages.merging.options import MethodOptions
from stages.merging.rules import method_rule
from stages.merging.streaming import chunks, places
from stages.merging.token_rows import Group, TokenRows, Vocabulary, match_rows
from stages.merging.token_tensors import token_tensors
from stages.running.errors import InputError
from stages.storage.adapters import PREFIX
from stages.storage.checkpoint import BaseWeights, Checkpoint, Ones
from stages.storage.naming import empty_model
from stages.storage.statistic_files import StatisticFiles, bad_value, open_statistic
from stages.storage.statistics import STATISTICS
from stages.storage.tensors import TensorFiles, TensorSpec

OF_WEIGHTS = " (of an adapter's model: with `fisher: {of: weights}`)"  # in messages: where one lacks what others change
Heads = Literal["merge", "target", "each"]
Precision = Literal["float32", "float64"]


class Ingredients:
    """The checkpoints of a merge (the target first), and what its method needs besides.

    Args:
        checkpoints: model name → directory; the first is the target.
        options: the method.
        statistics: model name → the directory or directories with its statistics.
        base: directory of the weights that the models were fine-tuned from.
        heads: see `stages.params.Merge`.
        vocabulary: likewise.

    Attributes:
        of_vectors: whether the models are adapters whose own parameters, vectors, are averaged, not their weights.
        constants: names of tensors that are the same in all models, and taken as they are: integers, what is no
            parameter, and what none of several adapters changes.
        kept_heads: names of the heads' tensors, if the target's head is kept.
        kept_body: of the target's body, with `heads: target`, what some other model lacks (a masked-LM model has no
            pooler).
        kept: both; of these the result has the target's, and nobody's if the target has none.
        rows: how rows are matched by token; None where all have the same, or must have.

    Raises:
        InputError: something is missing or does not fit, named.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        options: MethodOptions,
        statistics: Mapping[str, Path | Sequence[Path]] | None = None,
        base: Path | None = None,
        heads: Heads = "merge",
        vocabulary: Vocabulary = "same",
    ) -> None:
        self.vocabulary = vocabulary
        self.options = options
        self.numbers: dict[tuple[Hashable, ...], Any] = {}  # see `Models.once`
        self.checkpoints = {name: Checkpoint(directory, base) for name, directory in checkpoints.items()}
        self.target_name, self.target = next(iter(self.checkpoints.items()))
        if vocabulary != "same":
            refuse_adapters(self.checkpoints)
        self.of_vectors = self._open_adapters()
        try:
            options.refuse_number(len(self.checkpoints))
        except ValueError as error:
            raise InputError(str(error)) from None
        self.statistics = _open_statistics(options, checkpoints, statistics or {})
        self.further = _open_further(options, statistics or {})
        _check_parameters([*self.further.values(), *_every(self.statistics)], self.of_vectors)
        self.base = None
        if options.needs_base:
            if base is None:
                raise InputError(f"the method {options.method} needs the base that the models were fine-tuned from")
            self.base = Ones(self.target) if self.of_vectors else BaseWeights(base, self.target.base_model_prefix)
        check_same_function(self.checkpoints, self.base, any_vocabulary=vocabulary != "same")
        spelled = Spelled(self.checkpoints, self.statistics, self.further, self.base)
        if not spelled.alike(donors_may_lack=heads == "target"):
            spelled = common_names(spelled)
            self.statistics, self.further = spelled.statistics, spelled.further
        of_tokens = token_tensors(self.target) if vocabulary != "same" else set()
        self._choose_kept(heads, of_tokens)
        self.rows = self._match_rows(heads, of_tokens) if vocabulary != "same" else None
        integers = {name for name, spec in self._own_specs() if not spec.is_floating}
        for name in sorted(integers):
            refuse_unequal(name, self.checkpoints)
        self.constants = integers | self._equal_buffers() | self._unadapted()
        if self.base is not None:
            self.base.check(self._specs_of_base(self.base))
        self._check_statistics()

    def _open_adapters(self) -> bool:
        """Let those of the models that are adapters have the same tensors; returns `of_vectors`."""
        check_same_bases(self.checkpoints)
        of_vectors = all_are_vectors(self.checkpoints)
        some_untied = any(checkpoint.adapted and checkpoint.adapted.untied for checkpoint in self.checkpoints.values())
        for checkpoint in self.checkpoints.values():
            if of_vectors:
                checkpoint.take_vectors()
            elif some_untied:
                checkpoint.untie()
        return of_vectors

    def _choose_kept(self, heads: Heads, of_tokens: set[str]) -> None:
        """Find what is the target's alone, and refuse models whose other tensors differ, but for rows of tokens."""
        self.kept_heads: set[str] = set()
        if heads != "merge" or not heads_agree(self.checkpoints, of_tokens):
            self.kept_heads = set().union(*(checkpoint.head() for checkpoint in self.checkpoints.values()))
            if self.kept_heads >= self.target.tensors.specs.keys():
                raise InputError(
                    f"{self.target.tensors.file}: has no tensor {self.target.base_model_prefix}.…, so heads cannot be "
                    "told from the rest; merge models of the same labels with `heads: merge`"
                )
        self.kept_body = lacked_by_others(self.checkpoints) - self.kept_heads if heads == "target" else set()
        self.kept = self.kept_heads | self.kept_body
        if heads == "each":
            check_heads_fit_body(self.checkpoints, self.kept_heads)
        check_same_body(self.checkpoints, self.kept, of_tokens)
        if self.kept_body and self.kept >= self.target.tensors.specs.keys():
            raise InputError(
                f"{self.target.tensors.file}: the other models together have no tensor of its body, so there is "
                "nothing to merge; merge models of one base"
            )

    def _match_rows(self, heads: Heads, of_tokens: set[str]) -> TokenRows | None:
        """Match rows by token, and refuse what then cannot be had."""
        rows = match_rows(self.vocabulary, self.checkpoints, self.base, of_tokens, self.kept)
        if rows is None:
            return None
        for group in rows.groups:
            if 1 < len(group.models) < self.options.least_models:
                raise InputError(
                    f"the method {self.options.method} merges at least {self.options.least_models} models, but only "
                    f"{', '.join(group.models)} have a row for {group.keys[0]!r}; merge models of one vocabulary"
                )
        for option, model in self.options.further_models.items():
            raise InputError(
                f"the {option} {model}: its tokens are not known, so its Fisher cannot be matched by token; merge "
                f"models of one vocabulary, or leave out the {option}"
            )
        for checkpoint in self.checkpoints.values() if heads == "each" else ():
            if own := sorted(token_tensors(checkpoint) & self.kept_heads):
                raise InputError(
                    f"{checkpoint.tensors.file}: tensor {own[0]} of its head has a row per token of its own, "
                    "which the merged body's tokenizer does not have; set `heads: merge` or `heads: target`"
                )
        return rows

    def _specs_of_base(self, base: BaseWeights) -> dict[str, TensorSpec]:
        """What the base's tensors must be like: those with a row per token have as many rows as there are."""
        specs = dict(self.target.tensors.specs)
        for name in self.rows.tensors if self.rows is not None else ():
            if (own := base.name_of(name)) is not None:
                rows = base.tensors.specs[own].shape[:1]
                specs[name] = replace(specs[name], shape=rows + specs[name].shape[1:])
        return specs

    def _own_specs(self) -> Iterator[tuple[str, TensorSpec]]:
        """The target's tensors that are not kept, with their specs."""
        yield from ((name, spec) for name, spec in self.target.tensors.specs.items() if name not in self.kept)

    def _equal_buffers(self) -> set[str]:
        """What is no parameter, so that it has no Fisher, and the same in all models, as BART's final_logits_bias is.

        Any average is that too. Where there is a base, there are none: models may have gone on from another value.
        """
        fishers = [
            statistic.tensors.specs
            for kind, those in self.statistics.items()
            if STATISTICS[kind].is_of_parameters
            for statistic in those.values()
        ]
        if not fishers or self.base is not None:
            return set()
        lacked = {name for name, _ in self._own_specs() if not any(name in specs for specs in fishers)}
        model = empty_model(self.target.configured) if lacked else None
        buffers = set() if model is None else {name for name, _ in model.named_buffers()}

        def equal(name: str) -> bool:
            first, *others = (checkpoint.tensors.read(name).double() for checkpoint in self.checkpoints.values())
            return all(torch.equal(first, other) for other in others)

        return {name for name in lacked if self.target.name_in_model(name) in buffers and equal(name)}

    def _unadapted(self) -> set[str]:
        """The names of the weights that are still the base's, if all models are adapters on it."""
        target = self.target.adapted
        if target is None or any(checkpoint.adapted is None for checkpoint in self.checkpoints.values()):
            return set()
        if self.base is not None and not self.base.is_of(target.base):
            return set()
        return {name for name, _ in self._own_specs()} - self.adapted_names()

    def adapted_names(self) -> set[str]:
        """The names of the weights that one of the models, if it is an adapter, changes."""
        return {
            name
            for checkpoint in self.checkpoints.values()
            if checkpoint.adapted is not None
            for name in checkpoint.tensors.specs
            if checkpoint.tensors.stored_name(name) in checkpoint.adapted.changed
        }

    def _check_statistics(self) -> None:
        specs = self.target.tensors.specs
        for statistics in self.statistics.values():
            for name, statistic in statistics.items():
                statistic.check_cards(self.checkpoints[name])
        merged = {name: spec for name, spec in specs.items() if name not in self.kept | self.constants}
        adapters = any(checkpoint.adapted is not None for checkpoint in self.checkpoints.values())
        for kind, statistics in self.statistics.items():
            if not STATISTICS[kind].is_of_parameters:
                _check_factors(list(statistics.values()), merged, adapters=adapters)
                continue
            for name, statistic in statistics.items():
                own = {tensor: self.checkpoints[name].tensors.specs[tensor] for tensor in merged}
                _check_shapes(statistic, own, adapters=adapters)
        for fisher in self.further.values():
            head = self.target.head()
            own = {name: spec for name, spec in merged.items() if name not in head}
            _check_shapes(fisher, own, adapters=adapters)

    @cached_property
    def seen(self) -> "Seen":
        """What the method reads: files with, besides, the rows that are matched by token."""
        checkpoints = {name: checkpoint.tensors for name, checkpoint in self.checkpoints.items()}
        if self.rows is None:
            return Seen(checkpoints, self.statistics, self.base)
        statistics = {
            kind: {name: self.rows.of_statistic(name, files) for name, files in those.items()}
            for kind, those in self.statistics.items()
        }
        base = None if self.base is None else self.rows.of_base(self.base)
        return Seen(
            {name: self.rows.of_checkpoint(name, files) for name, files in checkpoints.items()}, statistics, base
        )

    def verify(self) -> None:
        """Check by fingerprints that all is as its card says, and statistics belong to their checkpoints.

        Quick after a merge, which has read nearly all of it.

        Raises:
            InputError: something is not, or does not.
        """
        for checkpoint in self.checkpoints.values():
            checkpoint.verify()
        if self.base is not None:
            self.base.verify()
        for statistics in self.statistics.values():
            for name, statistic in statistics.items():
                statistic.verify(self.checkpoints[name])
        for fisher in self.further.values():
            fisher.verify(None)

    def at(self, coefficients: Mapping[str, SupportsFloat], precision: Precision = "float32") -> "Merging":
        """The merge with these λ.

        Raises:
            InputError: they are not finite, not positive, or not of these models.
        """
        if unknown := sorted(coefficients.keys() - self.checkpoints.keys()):
            raise InputError(f"coefficients name the model {unknown[0]}, which is not among the checkpoints")
        if missing := sorted(self.checkpoints.keys() - coefficients.keys()):
            raise InputError(f"coefficients lack the model {missing[0]}")
        try:
            λs = {name: float(coefficients[name]) for name in self.checkpoints}  # of NumPy too
        except (TypeError, ValueError):
            raise InputError("coefficients must be numbers, one per model") from None
        if any(not (math.isfinite(λ) and λ >= 0) for λ in λs.values()) or not any(λs.values()):
            raise InputError("coefficients must be finite and not negative, and at least one positive")
        total = math.fsum(λs.values())  # the same in any order
        return Merging(self, {name: λ / total for name, λ in λs.items()}, precision)


@dataclass(frozen=True)
class Seen:
    """The files that a method reads, by the models' names, and the base's."""

    checkpoints: Mapping[str, TensorFiles]
    statistics: Mapping[str, Mapping[str, StatisticFiles]]
    base: BaseWeights | None


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
        """The merged tensor `name` in the precision that it is computed in, not rounded to what is written."""
        name = self.ingredients.target.copies.get(name, name)
        shape = self.specs[name].shape
        if name in self.copied:
            files = self.ingredients.checkpoints[self.copied[name]].tensors
            return files.read_as(name, self.models.dtype).to(self.models.dtype).reshape(shape)
        return torch.cat([piece.reshape(-1).clone() for piece in self._rule(name)]).reshape(shape)

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
            # One sum finds any NaN or infinity of any input, since all of them enter with a weight; whether it is one
            # or only the sum that overflows, and which input had it, is looked up then.
            if dtype.is_floating_point and not torch.isfinite(piece.sum()) and not torch.isfinite(piece).all():
                self._blame(name)
                raise InputError(f"merging the tensor {name} overflows {dtype}")
            yield piece

    def _blame(self, name: str) -> None:
        """Name the input whose tensor has a value that should not be there, if one has."""
        models = [self.copied[name]] if name in self.copied else self.models.names
        if name in self._by_token:  # rows may come from a model whose λ is zero
            models = list(self.ingredients.checkpoints)
        suspects: list[tuple[TensorFiles, str]] = [
            (self.ingredients.checkpoints[model].tensors, f"the checkpoint of {model}") for model in models
        ]
        if name not in self.copied:
            suspects += [
                (statistic.tensors, f"this {statistic.tensors.stem}")
                for statistics in self.models.statistics.values()
                for statistic in statistics
            ]
        for files, what in suspects:
            if name not in files.specs:
                continue
            values = files.read(name).reshape(-1)
            for place in places(values.numel()):
                if not torch.isfinite(values[place]).all():
                    raise InputError(
                        f"{files.file}: tensor {name} has {bad_value(values[place])} entry; make or fetch {what} again"
                    )


def _open_statistics(
    options: MethodOptions, checkpoints: Mapping[str, Path], statistics: Mapping[str, Path | Sequence[Path]]
) -> dict[str, dict[str, StatisticFiles]]:
    """What the method needs to know of each model."""
    if options.statistics and (missing := sorted(checkpoints.keys() - statistics.keys())):
        needed = " and the ".join(STATISTICS[kind].title for kind in options.statistics)
        raise InputError(
            f"the method {options.method} needs the {needed} of every model; missing: {', '.join(missing)}"
        )
    return {kind: {name: open_statistic(kind, statistics[name]) for name in checkpoints} for kind in options.statistics}


def _open_further(options: MethodOptions, statistics: Mapping[str, Path | Sequence[Path]]) -> dict[str, StatisticFiles]:
    """The Fishers of models that have no part in the merge, by the option that names them."""
    for option, model in options.further_models.items():
        if model not in statistics:
            raise InputError(f"the {option}'s Fisher is missing: statistics lack {model}")
    return {option: open_statistic("diagonal", statistics[model]) for option, model in options.further_models.items()}


def _every(statistics: Mapping[str, Mapping[str, StatisticFiles]]) -> Iterator[StatisticFiles]:
    """The files of all statistics of all models."""
    for files in statistics.values():
        yield from files.values()


def _check_parameters(statistics: Iterable[StatisticFiles], of_vectors: bool) -> None:
    """Refuse statistics of adapters' own parameters where weights are merged, and the other way round."""
    for files in statistics:
        parameters = [files.kind.parameter(key) for key in files.tensors.specs]
        own = next((name for name in parameters if name.startswith(PREFIX)), None)
        if own is not None and not of_vectors:
            raise InputError(
                f"{files.tensors.file}: is of the adapter's own parameters ({own}), but weights are merged, since no "
                "average of adapters' factors is an average of their models; estimate the one of the weights "
                "(`fisher: {of: adapts}`)"
            )
        if own is None and of_vectors:
            raise InputError(
                f"{files.tensors.file}: is of the model's weights, but the adapters' vectors are merged; estimate the "
                "one of these (`fisher: {of: adapter}`)"
            )


def _check_shapes(fisher: StatisticFiles, specs: Mapping[str, TensorSpec], *, adapters: bool) -> None:
    """Refuse a Fisher that lacks a tensor, as one of what an adapter changes may, or has one of another shape."""
    for name, spec in specs.items():
        found = fisher.tensors.specs.get(name)
        if found is None:
            how = OF_WEIGHTS if adapters else ""
            raise InputError(f"{fisher.tensors.file}: lacks the tensor {name}; estimate this Fisher again{how}")
        if not found.is_floating or found.shape != spec.shape:
            raise InputError(
                f"{fisher.tensors.file}: tensor {name} is {found.dtype} {list(found.shape)}, not a floating-point "
                f"{list(spec.shape)}"
            )


def _check_factors(statistics: Sequence[StatisticFiles], specs: Mapping[str, TensorSpec], *, adapters: bool) -> None:
    """Refuse factors that one model has and another lacks, of the tensors that are merged."""
    keys = {key: name for name in specs for key in statistics[0].kind.keys(name)}
    for key, name in keys.items():
        having = [statistic for statistic in statistics if key in statistic.tensors.specs]
        if having and len(having) < len(statistics):
            lacking = next(statistic for statistic in statistics if statistic not in having)
            how = OF_WEIGHTS if adapters else ""
            raise InputError(f"{lacking.tensors.file}: lacks the factor of {name}; estimate this statistic again{how}")
