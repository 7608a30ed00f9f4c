"""Where a stage computes: a matter of the machine, never of params.yaml, so that nobody's hardware re-runs a stage."""

import os

import torch

from stages.errors import InputError

VARIABLE = "FISHER_DEVICE"


def compute_device() -> torch.device:
    """The device that the environment's FISHER_DEVICE names: `auto` (a GPU if there is one), `cpu` or `cuda`."""
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(f"{VARIABLE}={wanted}: must be auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{VARIABLE}=cuda: torch sees no GPU here")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
