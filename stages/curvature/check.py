"""Whether a model's examples are kept apart, and whether the hooks see every use of its parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.curvature.autograd import add_square, differentiable, gradients_at
from stages.curvature.batches import batch_size, device_of, model_outputs, rows_of
from stages.curvature.capture import Capture, owners
from stages.curvature.errors import UnsupportedModelError
from stages.curvature.linear import by_onednn
from stages.curvature.memory import out_of_memory
from stages.curvature.precision import float32_products
from stages.curvature.sums import Sums

TOLERANCE = 1e-3  # relative; float32's rounding is a thousand times smaller, a missed use of a parameter is not small


@dataclass(frozen=True)
class Verdict:
    """What came of the comparison.

    Attributes:
        expand: whether results that are computed once for the whole batch can be expanded.
        wrong: the parameters that hooks get wrong.
        unknown: those that the example has no gradient for, so that nothing is known of them.
        not_by_example: those whose modules also gave something that was not by example, wrong or not.
    """

    expand: bool
    wrong: set[str]
    unknown: set[str]
    not_by_example: set[str]

    def left_to_autograd(self, capture: Capture) -> set[str]:
        """The parameters that the hooks had to leave out of a batch; an unknown one only where the batch uses it."""
        return self.wrong | (self.unknown & (capture.arrived | capture.not_by_example))

    def used_otherwise(self, capture: Capture) -> set[str]:
        """The parameters that the hooks were right about, but whose modules are not used by example in a batch."""
        return capture.not_by_example - self.not_by_example - self.wrong - self.unknown


def compare_with_autograd(model: nn.Module, batch: Mapping[str, Tensor], zeros: Mapping[str, Tensor]) -> Verdict:
    """Compare the hooks' squares with autograd's gradient G = Jᵀ s of one example, for a random vector s.

    The hooks see that example twice, with s and with 2 s, beside another example with nothing: they must find 5 G²
    (gradients that are added up over the batch before they are squared would give 9 G²).

    Args:
        model: its parameters do not require gradients.
        batch: of its examples the first two are used.
        zeros: parameter name → an accumulator for it, to work in; zero before and after.

    Raises:
        UnsupportedModelError: an example's outputs depend on the other examples.
        ValueError: the outputs are not finite.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise _mixing(f"module {name} ({type(module).__name__} without running statistics)")
    rows = [0, 0, min(1, batch_size(batch) - 1)]
    three = {key: tensor[rows] for key, tensor in batch.items()}
    # TF32's rounding would be taken for a missed use of a parameter.
    with torch.autocast(device_of(batch).type, enabled=False), float32_products():
        together, not_by_example = _add_by_hooks(model, three, zeros, expand=True)
        if not torch.isfinite(together).all():
            raise ValueError("the model's outputs are not finite; its weights or inputs are out of range")
        with differentiable(model, zeros) as parameters:
            outputs = model_outputs(model, rows_of(batch, 0, 1))
            gradients = gradients_at(outputs, parameters, _random_vector(together), last=True)
        alone = outputs.detach()
        tolerance = max(TOLERANCE, 30 * torch.finfo(alone.dtype).eps)
        if not torch.allclose(together[:1], alone, rtol=tolerance, atol=tolerance * float(alone.abs().max())):
            raise _mixing(f"the model ({type(model).__name__})")
        used = _norms(gradients)
        unknown = {name for name in zeros if used.get(name, 0.0) == 0}
        expanded = _different(zeros, gradients, tolerance)
        if not expanded:
            return Verdict(True, expanded, unknown, not_by_example)
        plainly_not = _add_by_hooks(model, three, zeros, expand=False)[1]
        plain = _different(zeros, gradients, tolerance)
    if len(expanded) <= len(plain):
        return Verdict(True, expanded, unknown, not_by_example)
    return Verdict(False, plain, unknown, plainly_not)


def _add_by_hooks(
    model: nn.Module, three: Mapping[str, Tensor], sums: Mapping[str, Tensor], expand: bool
) -> tuple[Tensor, set[str]]:
    """Add the squares of s, 2 s and nothing to `sums`, as far as the model puts up with hooks.

    Returns the outputs, and the parameters whose modules' results were not by example.
    """
    capture = Capture(owners(model, sums), Sums(dict(sums), {}, {}, {}), batch_size(three), expand=expand)
    try:
        with capture:
            with by_onednn(device_of(three)):
                outputs = model_outputs(model, three)
            vector = _random_vector(outputs)
            capture.backward(outputs, torch.cat([vector, 2 * vector, torch.zeros_like(vector)]), last=True)
    except RuntimeError as error:  # for example, it writes into an expanded tensor
        if out_of_memory(error):
            raise
        outputs = model_outputs(model, three)
    return outputs.detach(), capture.not_by_example


def _random_vector(outputs: Tensor) -> Tensor:
    """Always the same, of the shape of one example's outputs."""
    return torch.randn(outputs[:1].shape, generator=torch.Generator().manual_seed(0)).to(outputs)


def _different(found: Mapping[str, Tensor], gradients: Mapping[str, Tensor], tolerance: float) -> set[str]:
    """The names for which `found`, which is zeroed, is not 5 G²; a name that `gradients` lacks has G = 0."""
    norms = _norms(found)
    # What is zero but for rounding (BERT's key biases) has squares of the order of tolerance².
    negligible = (tolerance / 100) ** 2 * max(norms.values(), default=0.0)
    for name, value in found.items():
        if name in gradients:
            add_square(value, gradients[name], -5)
    left = _norms(found)
    for value in found.values():
        value.zero_()
    return {name for name in found if not left[name] <= tolerance * norms[name] + negligible}


def _norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """All at once: a GPU is waited for only here."""
    norms = [tensor.norm() for tensor in tensors.values()]
    values = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist() if norms else []
    return dict(zip(tensors, values, strict=True))


def _mixing(culprit: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{culprit} mixes the examples of a batch: an example's outputs depend on the others', so it has no gradient "
        "of its own"
    )
