"""All that goes into a merge, opened and checked once, whatever λ: `merged_tensors` says what comes of it."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

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
from stages.merging.options import MethodOptions
from stages.merging.token_rows import TokenRows, Vocabulary, match_rows
from stages.merging.token_tensors import token_tensors
from stages.running.errors import InputError
from stages.storage.adapters import PREFIX
from stages.storage.checkpoint import BaseWeights, Checkpoint, Ones
from stages.storage.naming import empty_model
from stages.storage.statistic_files import StatisticFiles, open_statistic
from stages.storage.statistics import STATISTICS
from stages.storage.tensors import TensorFiles, TensorSpec

OF_WEIGHTS = " (of an adapter's model: with `fisher: {of: weights}`)"  # in messages: where one lacks what others change
Heads = Literal["merge", "target", "each"]


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


@dataclass(frozen=True)
class Seen:
    """The files that a method reads, by the models' names, and the base's."""

    checkpoints: Mapping[str, TensorFiles]
    statistics: Mapping[str, Mapping[str, StatisticFiles]]
    base: BaseWeights | None


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
