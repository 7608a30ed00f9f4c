"""x Wᵀ + b in float32 on CPUs, by oneDNN.

torch leaves float32 products to MKL, which does not use AVX-512 on every maker's CPUs; oneDNN does, and takes half the
time there. torch has oneDNN's product as an operator for its compiler: without a derivative, and without checks.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Kernels are compiled for each shape, half a megabyte each, and torch and oneDNN both keep the last 1024 of them: that
# would grow with every length of batch. Both read this when they make their first.
for variable in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(variable, "16")  # more than one batch has shapes


_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]; what oneDNN computes has no derivative."""
    if not _suits_onednn(x, weight, bias):
        return functional.linear(x, weight, bias)
    bias = None if bias is None else bias.contiguous()  # other strides would be ignored
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class LinearByOneDNN(TorchFunctionMode):
    """Inside this context, `functional.linear` is done by oneDNN where that can be, with its derivative as to x.

    Where a weight or a bias requires a gradient, it is left to torch. Images go into convolutions in contiguous memory
    where these are in bfloat16: of strided ones, oneDNN gives wrong values on CPUs that multiply bfloat16 (torch 2.x,
    several examples, a kernel as large as the image).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        function = _differentiable_linear if func is functional.linear else func
        if func in _CONVOLUTIONS and (args[0].dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")):
            args = (args[0].contiguous(), *args[1:])
        return function(*args, **(kwargs or {}))


def by_onednn(device: torch.device) -> AbstractContextManager[Any]:
    """`LinearByOneDNN` for passes on a CPU; elsewhere it could do nothing but slow every call down."""
    return LinearByOneDNN() if device.type == "cpu" else nullcontext()


def _differentiable_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    constant = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if not (constant and _suits_onednn(input, weight, bias)):
        return functional.linear(input, weight, bias)
    output: Tensor = _Linear.apply(input, weight, bias)
    return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        product = linear(x, weight, bias)
        # No view of what oneDNN wrote, as far as autograd knows: the model may write into it.
        unviewed: Tensor = torch.ops.aten._unsafe_view(product, product.shape)
        return unviewed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return linear(gradients[0], ctx.weight.t()), None, None


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are plain float32 tensors that fit each other, outside of autocast and transforms such as vmap."""
    return (
        torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None
        and all(_plain(tensor) for tensor in (x, weight, bias) if tensor is not None)
        and weight.ndim == 2
        and x.shape[-1:] == weight.shape[1:]
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )
