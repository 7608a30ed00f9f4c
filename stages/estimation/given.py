"""A diagonal Fisher that nothing is estimated for: kept by the optimizer, or brought in from elsewhere."""

from pathlib import Path

import torch

from stages.estimation.verification import verified_fisher
from stages.running.errors import InputError
from stages.running.scratch import scratch_directory
from stages.storage.checkpoint_files import ADAM
from stages.storage.digests import CONTENTS
from stages.storage.outputs import atomic_directory, copy_files
from stages.storage.source import Source
from stages.storage.sources import fetch_source
from stages.storage.tensors import TensorFiles


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
    with scratch_directory() as folder, atomic_directory(out) as partial:
        brought = folder / "fisher"
        fetch_source(source, brought, unfinished=out)
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
