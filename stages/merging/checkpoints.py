"""The streamed merge of checkpoint directories: tensor by tensor, in chunks that stay in the cache."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stages.artifacts import (
    CHECKPOINT_CARD,
    CONFIGURATION_FILES,
    FORMAT_VERSION,
    MAX_SHARD_BYTES,
    TensorFiles,
    TensorSpec,
    TensorWriter,
    atomic_directory,
    copy_files,
    fingerprint,
    write_json,
    write_tensors,
)
from stages.errors import InputError
from stages.merging.fisher import fisher_average
from stages.merging.inputs import Checkpoint, check_same_body, open_fisher
from stages.merging.isotropic import isotropic_average
from stages.params import Fisher, Isotropic, Method

CHUNK_VALUES = 1 << 16  # with a few models a chunk of each fits into the L2 cache; larger ones are slower

METHODS: dict[str, Method] = {"isotropic": Isotropic(), "fisher": Fisher()}

# Chunks of the models' values of one tensor, and where in it they lie → the merged chunk.
ChunkRule = Callable[[str, slice, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class _Inputs:
    """The checkpoints (the target first) and their λ, and per tensor what is done with it."""

    checkpoints: Mapping[str, Checkpoint]
    coefficients: Mapping[str, float]
    averaged: frozenset[str]
    copied: Mapping[str, str]  # tensor → the model whose tensor is taken as it is
    heads_kept: bool  # the heads are not merged: the target's stands

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """What is written: of the target's types, or of the model's that a tensor is copied from."""
        target = next(iter(self.checkpoints))
        return {
            name: self.checkpoints[self.copied.get(name, target)].tensors.specs[name]
            for name in self.target.tensors.specs
        }

    @property
    def target(self) -> Checkpoint:
        return next(iter(self.checkpoints.values()))


def merge_checkpoints(
    checkpoints: Mapping[str, Path],
    out: Path,
    *,
    method: str | Method = "fisher",
    coefficients: Mapping[str, float],
    statistics: Mapping[str, Path] | None = None,
    heads: Literal["merge", "target", "each"] = "merge",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Merge checkpoint directories into a new one, with config, tokenizer and a card (`checkpoint.json`).

    Values are computed in float32 and written in the target's type. A model whose λ is zero takes no part; where only
    one takes part, its tensors are copied bit for bit, in its own type. Integer tensors are copied if all models' are
    equal.

    Args:
        checkpoints: model name → directory; the first is the target.
        out: becomes the merged checkpoint, whole or not at all.
        method: `isotropic`, `fisher`, or an object with the method's options.
        coefficients: λ by model name; they are divided by their sum.
        statistics: Fisher directories by model name, for methods that need them.
        heads: see `stages.params.MergeSection`. With `each`, every model's own head is kept in `out/heads/`.
        max_shard_bytes: larger checkpoints are spread over several files.
        progress: called with numbers of merged values, as they are done.

    Raises:
        InputError: inputs that cannot be merged, named; `out` is as it was.
    """
    options = _method_options(method)
    inputs = _prepare(checkpoints, coefficients, heads)
    fishers: dict[str, tuple[TensorFiles, dict[str, Any]]] = {}
    if isinstance(options, Fisher):
        statistics = statistics or {}
        if missing := sorted(checkpoints.keys() - statistics.keys()):
            raise InputError(f"the method fisher needs the Fisher of every model; missing: {', '.join(missing)}")
        fishers = {name: open_fisher(statistics[name], found) for name, found in inputs.checkpoints.items()}
    rule = _chunk_rule(options, inputs, {name: tensors for name, (tensors, _) in fishers.items()})

    with atomic_directory(out) as partial:
        copy_files(CONFIGURATION_FILES, inputs.target.directory, partial)
        with TensorWriter(partial, "model", inputs.specs, max_shard_bytes) as writer:
            for name in writer.names:
                for chunk in _merged_chunks(name, inputs, rule):
                    writer.write(name, chunk)
                    if progress is not None:
                        progress(chunk.numel())
        if heads == "each":
            (partial / "heads").mkdir()
            for name, checkpoint in inputs.checkpoints.items():
                own_head = {tensor: checkpoint.tensors.read(tensor) for tensor in sorted(checkpoint.head())}
                write_tensors(partial / "heads", name, own_head)
        cards = {name: card for name, (_, card) in fishers.items()}
        write_json(partial / CHECKPOINT_CARD, _card(options, inputs, heads, cards, partial))


def _method_options(method: str | Method) -> Method:
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise InputError(f"unknown merge method {method!r}; known: {', '.join(sorted(METHODS))}")
    return METHODS[method]


def _prepare(checkpoints: Mapping[str, Path], coefficients: Mapping[str, float], heads: str) -> _Inputs:
    """Open the checkpoints, check them against each other, and decide what is done with each tensor."""
    if unknown := sorted(coefficients.keys() - checkpoints.keys()):
        raise InputError(f"coefficients name the model {unknown[0]}, which is not among the checkpoints")
    if missing := sorted(checkpoints.keys() - coefficients.keys()):
        raise InputError(f"coefficients lack the model {missing[0]}")
    if any(not (math.isfinite(λ) and λ >= 0) for λ in coefficients.values()) or not any(coefficients.values()):
        raise InputError("coefficients must be finite and not negative, and at least one positive")
    total = sum(coefficients.values())
    shares = {name: coefficients[name] / total for name in checkpoints}
    opened = {name: Checkpoint(directory) for name, directory in checkpoints.items()}
    target_name, target = next(iter(opened.items()))

    kept_heads: set[str] = set()
    if heads != "merge" or not _heads_agree(opened):
        kept_heads = set().union(*(checkpoint.head() for checkpoint in opened.values()))
    check_same_body(opened, kept_heads)

    sole = [name for name, share in shares.items() if share > 0]
    averaged, copied = set(), {}
    for tensor, spec in target.tensors.specs.items():
        if tensor in kept_heads:
            copied[tensor] = target_name
        elif len(sole) == 1:
            copied[tensor] = sole[0]
        elif spec.is_floating:
            averaged.add(tensor)
        else:
            _refuse_unequal(tensor, opened)
            copied[tensor] = target_name
    return _Inputs(opened, shares, frozenset(averaged), copied, bool(kept_heads))


def _heads_agree(checkpoints: Mapping[str, Checkpoint]) -> bool:
    """Whether all models have the same label names, and all their tensors the same names and shapes."""
    first, *others = checkpoints.values()
    if all(other.labels == first.labels for other in others):
        shapes = {name: spec.shape for name, spec in first.tensors.specs.items()}
        if all({name: spec.shape for name, spec in other.tensors.specs.items()} == shapes for other in others):
            return True
        # The bodies may differ, which is an error that names the tensor; only a head may.
        head = first.head()
        return all(
            {name: spec.shape for name, spec in other.tensors.specs.items() if name in head}
            == {name: shape for name, shape in shapes.items() if name in head}
            for other in others
        )
    return False


def _refuse_unequal(tensor: str, checkpoints: Mapping[str, Checkpoint]) -> None:
    (first_name, first), *others = checkpoints.items()
    for _, other in others:
        if not torch.equal(first.tensors.read(tensor), other.tensors.read(tensor)):
            raise InputError(
                f"{other.tensors.file}: the integer tensor {tensor} differs from {first_name}'s; it cannot be averaged"
            )


def _chunk_rule(options: Method, inputs: _Inputs, fishers: Mapping[str, TensorFiles]) -> ChunkRule:
    """The method, with what it needs to know about the models beside a chunk of their values."""
    shares = list(inputs.coefficients.values())
    match options:
        case Isotropic():
            return lambda _name, _place, values: isotropic_average(values, shares)
        case Fisher():
            files = list(fishers.values())
            for tensors in files:
                _check_fisher_shapes(tensors, inputs)
            norms = [_fisher_norm(tensors, inputs.averaged) for tensors in files]
            if options.normalize == "l2":
                shares = [share / norm if share else 0.0 for share, norm in zip(shares, norms, strict=True)]
            floors = [options.floor if i == 0 or not options.favor_target else 0.0 for i in range(len(files))]

            def rule(name: str, place: slice, values: Sequence[Tensor]) -> Tensor:
                weights = [tensors.read(name).reshape(-1)[place].float() for tensors in files]
                return fisher_average(values, weights, shares, floors)

            return rule


def _check_fisher_shapes(fisher: TensorFiles, inputs: _Inputs) -> None:
    for name in sorted(inputs.averaged):
        spec = fisher.specs.get(name)
        if spec is None:
            raise InputError(f"{fisher.file}: lacks the tensor {name}; estimate this Fisher again")
        if not spec.is_floating or spec.shape != inputs.target.tensors.specs[name].shape:
            raise InputError(
                f"{fisher.file}: tensor {name} is {spec.dtype} {list(spec.shape)}, not a floating-point "
                f"{list(inputs.target.tensors.specs[name].shape)}"
            )


def _fisher_norm(fisher: TensorFiles, names: frozenset[str]) -> float:
    """‖F‖₂ over the named tensors, summed in float64.

    Raises:
        InputError: an entry is negative or not finite, or all are zero.
    """
    if not names:
        return 1.0
    square = 0.0
    for name in sorted(names):
        values = fisher.read(name).reshape(-1)
        for place in _places(values.numel()):
            chunk = values[place].float()
            if chunk.numel() == 0:
                continue
            low, high = torch.aminmax(chunk)
            if not (low >= 0 and torch.isfinite(high)):
                raise InputError(
                    f"{fisher.file}: tensor {name} has {_bad_value(chunk)} entry; estimate this Fisher again"
                )
            square += float(torch.linalg.vector_norm(chunk, dtype=torch.float64)) ** 2
    if square == 0:
        raise InputError(f"{fisher.file}: is zero everywhere; the model's outputs do not depend on its parameters")
    return math.sqrt(square)


def _bad_value(values: Tensor) -> str:
    if torch.isnan(values).any():
        return "a NaN"
    return "an infinite" if torch.isinf(values).any() else "a negative"


def _places(elements: int) -> Iterator[slice]:
    """Slices that cover `elements` values, chunk by chunk; an empty tensor has one, empty."""
    for start in range(0, max(elements, 1), CHUNK_VALUES):
        yield slice(start, min(start + CHUNK_VALUES, elements))


def _merged_chunks(name: str, inputs: _Inputs, rule: ChunkRule) -> Iterator[Tensor]:
    """The merged tensor `name`, flat, chunk by chunk, in the type it is written in."""
    dtype = getattr(torch, inputs.specs[name].dtype)
    models = [inputs.copied[name]] if name in inputs.copied else list(inputs.checkpoints)
    tensors = [inputs.checkpoints[model].tensors.read(name).reshape(-1) for model in models]
    for place in _places(tensors[0].numel()):
        if name in inputs.copied:
            merged = tensors[0][place].to(dtype)
        else:
            merged = rule(name, place, [tensor[place].float() for tensor in tensors]).to(dtype)
        # One sum finds any NaN or infinity of any input, since all of them enter with a weight; which one it was is
        # looked up only then.
        if merged.is_floating_point() and not torch.isfinite(merged.sum(dtype=torch.float64)):
            for model, tensor in zip(models, tensors, strict=True):
                if not torch.isfinite(tensor[place]).all():
                    raise InputError(
                        f"{inputs.checkpoints[model].tensors.file}: tensor {name} has {_bad_value(tensor[place])} "
                        f"entry; make or fetch the checkpoint of {model} again"
                    )
            raise InputError(f"merging the tensor {name} overflows {dtype}")
        yield merged


def _card(
    options: Method, inputs: _Inputs, heads: str, fisher_cards: Mapping[str, Mapping[str, Any]], directory: Path
) -> dict[str, Any]:
    """What the merged checkpoint is and how it was made."""
    target = inputs.target
    keys = ("estimator", "likelihood", "examples", "seed", "examples_fingerprint")
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(TensorFiles(directory)),
        "base_model_prefix": target.card.get("base_model_prefix"),
        "labels": target.labels,
        "task": target.card.get("task"),
        "origin": {
            "method": options.method,
            "options": options.model_dump(exclude={"method", "coefficients", "target", "heads"}),
            "target": next(iter(inputs.checkpoints)),
            "heads": heads if heads == "each" else ("target" if inputs.heads_kept else "merge"),
            "coefficients": dict(inputs.coefficients),
            "models": {
                name: {
                    "checkpoint": checkpoint.card.get("fingerprint") or fingerprint(checkpoint.tensors),
                    "task": checkpoint.card.get("task"),
                    **({"fisher": {key: fisher_cards[name].get(key) for key in keys}} if name in fisher_cards else {}),
                }
                for name, checkpoint in inputs.checkpoints.items()
            },
        },
    }
