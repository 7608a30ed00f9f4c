"""Where and in what type a stage computes: the only place that moves a model or a batch, or chooses a type for it.

The device is a matter of the machine, never of params.yaml, so that nobody's hardware re-runs a stage.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from stages.running.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import TrainingArguments

ModelT = TypeVar("ModelT", bound=torch.nn.Module)
Precision = Literal["float32", "bfloat16"]

VARIABLE = "FISHER_DEVICE"
REPRODUCIBLE = "FISHER_REPRODUCIBLE"
NOT_REPRODUCIBLE = "does not have a deterministic implementation"  # how torch says it
WEIGHTS = torch.float32  # what a model's weights are in memory, whatever their file holds
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Placement:
    """A device, and the type in which passes are computed there.

    Attributes:
        device: where models and batches go.
        precision: of the products in a pass; weights and sums are float32 in either.
    """

    device: torch.device = CPU
    precision: Precision = "float32"

    @classmethod
    def of_this_machine(cls) -> "Placement":
        """Where the environment says, in float32. Raises `InputError` as `compute_device` does."""
        return cls(compute_device())

    def model(self, model: ModelT) -> ModelT:
        """The model, moved there; it is the same object."""
        return model.to(self.device)

    def batch(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch there, by model input."""
        return {key: tensor.to(self.device) for key, tensor in batch.items()}

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Memory there for weights of that shape."""
        return torch.empty(shape, dtype=WEIGHTS, device=self.device)

    def passes(self) -> AbstractContextManager[object]:
        """Inside this context, forward and backward passes are computed in `precision`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def same_bits(self) -> AbstractContextManager[None]:
        """Inside this context, the same inputs give the same bits; see `reproducible`."""
        return reproducible(self.device)

    def release(self) -> None:
        """Give back to the device what torch has kept of freed memory there."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def started_processes() -> "PartialState":
    """The processes that a launcher has started for this stage, each with a device of its own; one without a launcher.

    Raises:
        InputError: as `compute_device` does.
    """
    from accelerate import PartialState

    return PartialState(cpu=compute_device().type == "cpu")


def on_the_cpu(model: ModelT) -> ModelT:
    """The model, moved back to be written; it is the same object."""
    return Placement().model(model)


def without_weights(model: ModelT) -> ModelT:
    """A copy of a model that has its modules and configuration, and neither weights nor hooks: it takes no memory."""
    tensors = [*model.parameters(), *model.buffers()]
    copied = deepcopy(model, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors})
    for module in copied.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return copied


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
