"""The statistics, a module each, and their files: .safetensors with a card (.json) beside them.

A new module is a new statistic, and nothing else has to be told of it; it declares a `StatisticKind`.

A diagonal Fisher has a tensor per parameter, under the parameter's name in the checkpoint's file. K-FAC factors and
Gram matrices belong to Linear weights: `input.NAME` is A and `output.NAME` is G; `stages.curvature` says what they are.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from stages.running.errors import InputError
from stages.storage.cards import FORMAT_VERSION, write_json
from stages.storage.statistic import StatisticKind
from stages.storage.tensors import TensorFiles, fingerprint, write_tensors

if TYPE_CHECKING:
    import torch

SEAL = "seal"  # in a card: `card_seal` of the rest
SUMMARY_TOLERANCE = 1e-6  # of what a card says of a tensor: sums in another order, on another machine
TRANSPOSED = "transposed"  # in a card: the weights that are stored as [in, out]


def _declared(name: str) -> StatisticKind:
    """The statistic in the module of that name: its `KIND`."""
    kind = getattr(import_module(f"{__name__}.{name}"), "KIND", None)
    if not isinstance(kind, StatisticKind) or kind.name != name:
        raise ImportError(f"{__name__}.{name}: must have a StatisticKind of the name {name!r} as KIND")
    return kind


STATISTICS = {module.name: _declared(module.name) for module in iter_modules(__path__)}  # by name
FACTORS = {name: kind for name, kind in STATISTICS.items() if not kind.is_of_parameters}  # those of Linear weights


def card_seal(card: Mapping[str, Any]) -> str:
    """SHA-256 of all that a card says beside the seal itself.

    Merges take norms from the card, to save a pass over the tensors. It guards against mistakes, not forgery.
    """
    return sha256(json.dumps({**card, SEAL: None}, sort_keys=True).encode()).hexdigest()


def write_statistic(
    directory: Path,
    statistic: str,
    tensors: Mapping[str, "torch.Tensor"],
    checkpoint: TensorFiles,
    card: Mapping[str, Any],
) -> None:
    """Write a statistic of a checkpoint, with its card, into an existing directory.

    Args:
        directory: where to.
        statistic: which of `STATISTICS` it is.
        tensors: of finite values, as `StatisticKind` says. Written in the type they have.
        checkpoint: the weights it is of.
        card: what else the card says: how it was estimated, on what.

    Raises:
        InputError: a value cannot be, or a parameter is not in the checkpoint's file, or there in another shape.
    """
    import torch

    kind = STATISTICS[statistic]
    stem = kind.stem
    for name, values in tensors.items():
        if not torch.isfinite(values).all():
            raise InputError(
                f"{checkpoint.directory}: the {stem} of {name} is not finite; the model's weights are out of range"
            )
        if kind.is_of_parameters and name not in checkpoint.specs:
            raise InputError(
                f"{checkpoint.directory}: the model's parameter {name} is not in its file; "
                "`stages.merging.save_fisher` writes a Fisher under the file's names"
            )
        if kind.is_of_parameters and tuple(values.shape) != checkpoint.specs[name].shape:
            raise InputError(
                f"{checkpoint.file}: tensor {name} has the shape {list(checkpoint.specs[name].shape)}, but the {stem} "
                f"{list(values.shape)}; give the checkpoint that it is of"
            )
        if kind.is_of_parameters and values.numel() and values.min() < 0:
            raise InputError(f"{checkpoint.directory}: the {stem} of {name} has a negative entry")
    found = write_tensors(directory, stem, tensors)
    facts = {
        "format_version": FORMAT_VERSION,
        "checkpoint": fingerprint(checkpoint),
        **card,
        "fingerprint": found,
        "tensors": {name: summary(values) for name, values in sorted(tensors.items())},
    }
    write_json(directory / f"{stem}.json", {**facts, SEAL: card_seal(facts)})


def summary(values: "torch.Tensor") -> dict[str, float]:
    """What a card says of a tensor: its mean, the share of its entries that are zero, and its norm ‖·‖₂."""
    import torch

    elements = max(values.numel(), 1)
    return {
        "mean": float(values.sum(dtype=torch.float64)) / elements,
        "zeros": int((values == 0).sum()) / elements,
        "norm": float(torch.linalg.vector_norm(values, dtype=torch.float64)),
    }
