"""What float32 means where a GPU could compute with fewer bits."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def float32_products() -> Iterator[None]:
    """Inside this context, products of float32 matrices and convolutions of float32 values do not use TF32."""
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Inside this context the model's floating-point parameters and buffers are float64; afterwards as they were.

    Raises:
        TypeError, RuntimeError: they cannot be (quantised weights, devices without float64).
    """
    with ExitStack() as restored:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                before, gradient = parameter.data, parameter.grad
                parameter.grad = None  # it must have the parameter's type
                restored.callback(setattr, parameter, "grad", gradient)
                restored.callback(setattr, parameter, "data", before)
                parameter.data = before.double()
        for module in model.modules():
            config: Any = getattr(module, "config", None)
            implementation = getattr(config, "_experts_implementation_internal", None)
            if implementation is not None:  # transformers' grouped products of experts have no float64
                restored.callback(setattr, config, "_experts_implementation_internal", implementation)
                config._experts_implementation_internal = "eager"
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    restored.callback(module._buffers.__setitem__, name, buffer)
                    module._buffers[name] = buffer.double()
        yield


def as_float64(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch whose floating-point tensors are float64."""
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }
