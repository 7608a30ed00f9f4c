"""A checkpoint's diagonal Fisher: estimated, taken from the optimizer, or brought in."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from stages.curvature.estimation import DIAGONAL
from stages.estimation.passes import estimate_card, estimated_statistics
from stages.estimation.verification import verified_fisher
from stages.params import FisherSettings
from stages.running.errors import InputError
from stages.storage.checkpoint_files import ADAM
from stages.storage.digests import CONTENTS
from stages.storage.outputs import atomic_directory, copy_files
from stages.storage.source import Source
from stages.storage.sources import fetch_source
from stages.storage.statistics import write_statistic
from stages.storage.tensors import TensorFiles
from stages.tasks.data import TaskData


def estimate(checkpoint: Path, task: TaskData, settings: FisherSettings, out: Path) -> None:
    """Write the checkpoint's Fisher on examples drawn from the task's train split, with its card, as directory `out`.

    Under torchrun or `accelerate launch`, every process calls it and takes its share of the examples; the first writes.

    Raises:
        InputError: the checkpoint or the examples cannot be used, or the result is not finite.
    """
    if settings.estimator == "adam":
        write(out, second_moments(checkpoint), estimate_card(task, settings), checkpoint, settings)
        return
    with estimated_statistics(checkpoint, task, settings, out, DIAGONAL) as found:
        if found is not None:
            write(out, found.statistics.diagonal, found.card, checkpoint, settings)


def bring_in(name: str, source: Source, checkpoint: Path, out: Path) -> None:
    """Copy a Fisher from its source to the directory `out`, after checking all that can be wrong with it.

    Raises:
        InputError: it cannot be had or differs from its pin, or `verified_fisher` refuses it; `out` is as it was.
    """
    if source.path is not None and Path(source.path).expanduser().is_file():
        raise InputError(
            f"{source.path}: is a file; a Fisher is brought in with its card: name the directory that has both, and "
            "the sha256 of that"
        )
    with tempfile.TemporaryDirectory() as folder, atomic_directory(out) as partial:
        brought = Path(folder) / "fisher"
        fetch_source(source, brought)
        verified_fisher(name, checkpoint, brought)
        copy_files([entry.name for entry in brought.iterdir() if entry.name != CONTENTS], brought, partial)


def second_moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The optimizer's running mean of squared gradients as a Fisher ("Fishers for Free?", arXiv 2507.18807).

    Raises:
        InputError: fine-tuning has not kept it.
    """
    if not (checkpoint / f"{ADAM}.safetensors").is_file():
        raise InputError(
            f"{checkpoint}: has no {ADAM}.safetensors; fine-tune it with `fisher: {{estimator: adam}}` under its model"
        )
    moments = TensorFiles(checkpoint, ADAM)
    return {name: moments.read(name) for name in moments.specs}


def write(
    out: Path, diagonal: dict[str, torch.Tensor], card: dict[str, Any], checkpoint: Path, settings: FisherSettings
) -> None:
    """Write a Fisher in the type that the settings want. Raises `InputError` as `write_statistic` does."""
    dtype = getattr(torch, settings.dtype)
    with atomic_directory(out) as partial:
        tensors = {name: values.to(dtype) for name, values in diagonal.items()}
        write_statistic(partial, "diagonal", tensors, TensorFiles(checkpoint), card | {"dtype": settings.dtype})
