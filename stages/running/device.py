"""Where a stage computes: a matter of the machine, never of params.yaml, so that nobody's hardware re-runs a stage."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from stages.running.errors import InputError

if TYPE_CHECKING:
    from transformers import TrainingArguments

VARIABLE = "FISHER_DEVICE"
REPRODUCIBLE = "FISHER_REPRODUCIBLE"
NOT_REPRODUCIBLE = "does not have a deterministic implementation"  # how torch says it


def compute_device() -> torch.device:
    """The device that the environment's FISHER_DEVICE names: `auto` (a GPU if there is one), `cpu` or `cuda`."""
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(f"{VARIABLE}={wanted}: must be auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{VARIABLE}=cuda: torch sees no GPU here")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def one_gpu(arguments: "TrainingArguments") -> "TrainingArguments":
    """Let a Trainer use one GPU a process, as estimations do.

    Otherwise a process that sees several would train on all of them, with batches as many times as large as is asked
    for. A launcher that starts several processes gives each a GPU of its own.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)  # as the Trainer does itself where it spreads a model over GPUs
    return arguments


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Inside this context a GPU gives the same bits for the same inputs, as CPUs do; gradients are slower there.

    What is left out is what torch does for debugging only, to fill memory before its use. The environment's
    FISHER_REPRODUCIBLE=no does without all of it.

    Raises:
        InputError: the model does something of which torch has no such implementation for GPUs.
    """
    wanted = os.environ.get(REPRODUCIBLE, "yes")
    if wanted not in ("yes", "no"):
        raise InputError(f"{REPRODUCIBLE}={wanted}: must be yes or no")
    if device.type == "cpu" or wanted == "no":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module with a property, which mypy does not see
    filling = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    except RuntimeError as error:
        if NOT_REPRODUCIBLE not in str(error):
            raise
        operation = str(error).partition(NOT_REPRODUCIBLE)[0].strip()
        raise InputError(
            f"{operation} gives other bits each time on a GPU; set {VARIABLE}=cpu, or {REPRODUCIBLE}=no to accept that"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filling
