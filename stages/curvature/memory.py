"""Telling that memory ran out from other errors."""

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or on the CPU, for which torch has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
