"""Products by oneDNN: torch's `linear` in value and derivative, and left to torch where oneDNN would not do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from stages.curvature.linear import LinearByOneDNN, linear

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x,
    "one row": lambda x: x[0, 0],
    "none": lambda x: x[:0],
    "transposed": lambda x: x.transpose(0, 1),
    "columns": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded": lambda x: x[:1].expand(x.shape),
    "sliced": lambda x: torch.cat([x, x], -1)[..., 3 : 3 + x.shape[-1]].roll(3, -1),
    "every other": lambda x: torch.stack([x, -x], -1).flatten(-2)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weight_layout", ["rows", "columns"])
@pytest.mark.parametrize("bias_layout", ["rows", "every other", "no"])
def test_value_and_derivative(layout: str, weight_layout: str, bias_layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = LAYOUTS[layout](torch.randn(3, 4, 17, generator=generator)).detach().requires_grad_()
    weight = torch.randn(29, 17, generator=generator)
    if weight_layout == "columns":
        weight = weight.t().contiguous().t()
    bias = None if bias_layout == "no" else LAYOUTS[bias_layout](torch.randn(29, generator=generator)[None])[0]
    with LinearByOneDNN():
        outputs = functional.linear(x, weight, bias)
    g = torch.randn(outputs.shape, generator=generator)
    (gradient,) = torch.autograd.grad(outputs, x, g)
    wanted = x.detach().double() @ weight.double().T + (0 if bias is None else bias.double())
    torch.testing.assert_close(outputs.detach().double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear(x.detach(), weight, bias).double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), g.double() @ weight.double(), rtol=1e-5, atol=1e-5)


def test_modules_use_it_where_torch_has_it() -> None:
    module = torch.nn.Linear(8, 9).requires_grad_(False)
    with profile(activities=[ProfilerActivity.CPU]) as events, LinearByOneDNN():
        module(torch.randn(4, 8))
    operators = {event.key for event in events.key_averages()}
    assert ("mkldnn::_linear_pointwise" in operators) == torch.backends.mkldnn.is_available()


def test_gradient_of_a_weight_is_left_to_torch() -> None:
    module = torch.nn.Linear(8, 9)
    x = torch.randn(4, 8)
    with LinearByOneDNN():
        module(x).sum().backward()
    assert module.weight.grad is not None
    torch.testing.assert_close(module.weight.grad, x.sum(0).expand(9, 8))


def test_other_types_and_shapes_are_left_to_torch() -> None:
    x, weight = torch.randn(4, 8), torch.randn(9, 8)
    with LinearByOneDNN():
        assert functional.linear(x.double(), weight.double()).dtype == torch.float64
        assert functional.linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(functional.linear(x, weight[0]), x @ weight[0])
        torch.testing.assert_close(functional.linear(x, weight, torch.ones(1)), x @ weight.T + 1)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            functional.linear(x[:, 1:], weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.linear(x, weight).dtype == torch.bfloat16
        mapped = vmap(functional.linear, in_dims=(0, None))(x[:, None], weight)
        torch.testing.assert_close(mapped[:, 0], x @ weight.T)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_convolution_of_strided_images_in_bfloat16_has_right_values(autocast: bool) -> None:
    """Where a kernel is as large as its image, oneDNN's are wrong on some CPUs."""
    generator = torch.Generator().manual_seed(0)
    tokens, kernel = torch.randn(3, 64, 16, generator=generator), torch.randn(16, 16, 8, 8, generator=generator)
    dtype = torch.float32 if autocast else torch.bfloat16
    images = tokens.to(dtype).permute(0, 2, 1).reshape(3, 16, 8, 8)
    with LinearByOneDNN(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = functional.conv2d(images, kernel.to(dtype))
    right = functional.conv2d(images.double(), kernel.double())
    assert float((found.double() - right).norm() / right.norm()) < 0.02
