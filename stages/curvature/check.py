"""Whether a model's examples are kept apart, and from which modules' calls each parameter's gradients can be taken.

The check computes in float64 where the model can: what it finds then is no rounding. Nothing is called small beside
other parameters, since merging compares a parameter's Fisher between models, and not with its neighbours'.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.curvature.autograd import differentiable, receive_gradients
from stages.curvature.batches import Batch, batch_size, chosen_rows, device_of, model_outputs, rows_of
from stages.curvature.calls import Layout, layouts_of, recorded
from stages.curvature.capture import Capture
from stages.curvature.errors import CurvatureError, UnsupportedModelError
from stages.curvature.linear import by_onednn
from stages.curvature.memory import out_of_memory
from stages.curvature.precision import as_float64, float32_products, in_float64
from stages.curvature.sums import Sums
from stages.curvature.units import Homes, Unit

TOLERANCE = 1e-3  # relative, in float32; its rounding is a thousand times smaller, a missed use is not small
TOLERANCE64 = 1e-5  # in float64; squares are added up in float32
ROUNDING = 30  # how much larger a difference may be than what another order of the same sums makes
CANCELLED = 1e-22  # of squares in float64: a hundred thousand times what its rounding leaves
SINGLES = 4  # examples that modules are watched on one by one


@dataclass(frozen=True)
class Verdict:
    """What came of the comparison.

    Attributes:
        units: the modules that gradients are taken from, of the parameters for which that was found right.
        expand: whether results [1, …] that are computed once for the whole batch are expanded.
        picked: of the units' modules, those whose rows were picked by what is in them.
        wrong: the parameters that are left to autograd.
        unknown: those that the example has no gradient for, so that nothing is known of them.
        larger: those whose gradients are taken from a larger module than the one that owns them.
    """

    units: list[Unit]
    expand: bool
    picked: set[nn.Module]
    wrong: set[str]
    unknown: set[str]
    larger: set[str]


def compare_with_autograd(model: nn.Module, batch: Batch, zeros: Mapping[str, Tensor]) -> Verdict:
    """Compare the hooks' squares with autograd's gradient G = Jᵀ s of one example, for a random vector s.

    The hooks see that example twice, with s and with 2 s, beside another example with nothing: they must find 5 G²
    (gradients that are added up over the batch before they are squared would give 9 G²). A parameter for which they do
    not is looked at again from a larger module, and in the end left to autograd.

    Args:
        model: its parameters do not require gradients.
        batch: of its examples a few are used.
        zeros: parameter name → an accumulator for it, to work in; zero before and after.

    Raises:
        UnsupportedModelError: an example's outputs depend on the other examples.
        CurvatureError: the outputs are not finite.
    """
    _refuse_what_cannot_be(model)
    # TF32's rounding would be taken for a missed use of a parameter.
    with torch.autocast(device_of(batch).type, enabled=False), float32_products():
        try:
            with in_float64(model):
                return _Comparison(model, as_float64(batch), zeros, TOLERANCE64).verdict()
        except (RuntimeError, TypeError) as error:  # quantised weights, a device or an operation without float64
            if out_of_memory(error):
                raise
        for value in zeros.values():
            value.zero_()
        dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        return _Comparison(model, batch, zeros, max(TOLERANCE, 30 * torch.finfo(dtype).eps)).verdict()


def input_layouts(model: nn.Module, batch: Batch, modules: Collection[nn.Module]) -> dict[nn.Module, list[Layout]]:
    """Where the examples are in the modules' calls, for statistics that take forward passes only."""
    singles = [recorded(modules, lambda b=b: model_outputs(model, rows_of(batch, b, b + 1))) for b in _singles(batch)]  # type: ignore[misc]
    return layouts_of(singles, recorded(modules, lambda: model_outputs(model, _three(batch))), 3)


class _Comparison:
    """One comparison, in the type that the model and the batch are in now."""

    def __init__(self, model: nn.Module, batch: Batch, zeros: Mapping[str, Tensor], tolerance: float) -> None:
        self._model = model
        self._batch = batch
        self._zeros = zeros
        self._tolerance = tolerance
        modules = [module for module in model.modules() if any(True for _ in module.parameters())]
        outputs: list[Tensor] = []
        self._singles = [
            recorded(modules, lambda b=b: outputs.append(model_outputs(model, rows_of(batch, b, b + 1))))  # type: ignore[misc]
            for b in _singles(batch)
        ]
        together = recorded(modules, lambda: outputs.append(model_outputs(model, _three(batch))))
        self._alone, self._together = outputs[0].detach(), outputs[-1].detach()
        self._refuse_mixing()
        self._vector = _random_vector(self._alone)
        self._homes = Homes(model, zeros, layouts_of(self._singles, together, 3), together.keys())
        self._expand = True
        self._right = set[str]()
        self._unknown = set(zeros)
        self._picked: set[nn.Module] = set()
        self._sizes: dict[str, float] = {}  # of 5 G²
        precise = self._together.dtype == torch.float64
        self._rounding_share = CANCELLED if precise else (100 * torch.finfo(self._together.dtype).eps) ** 2

    def verdict(self) -> Verdict:
        """Compare until every parameter is right, left to autograd, or has no gradient for any of a few examples."""
        for b, calls in enumerate(self._singles):
            # What another example calls, and what has a gradient of zero by chance, may be known by that example.
            again = {name for name in self._unknown if b == 0 or name in self._zero or self._homes.called(name, calls)}
            self._unknown -= again
            self._compare(again, b)
        wrong = set(self._zeros) - self._right - self._unknown
        larger = {name for name in self._right if not self._homes.is_its_owners(name)}
        units = self._homes.units(self._right | self._unknown)
        return Verdict(units, self._expand, self._picked, wrong, self._unknown, larger)

    def _compare(self, pending: set[str], b: int) -> None:
        """Sort these names by what example b says of them."""
        self._one, self._three = rows_of(self._batch, b, b + 1), _three(self._batch, b)
        while pending:
            lost = self._homes.lost & pending
            try:
                not_by_example = self._add_by_hooks(self._homes.units(pending))
            except RuntimeError as error:  # for example, the model writes into an expanded tensor
                if out_of_memory(error):
                    raise
                self._clear()
                if self._expand:
                    self._expand = False
                    continue
                lost = not_by_example = pending
            without, differing = self._differing(pending)
            rounding = self._rounding(differing - not_by_example)
            differing = differing - rounding | not_by_example & (pending - without)
            self._unknown |= without | rounding & lost
            self._right |= pending - differing - without - (rounding & lost)
            for name in differing - lost:
                self._homes.widen(name)
            pending = differing - lost

    def _refuse_mixing(self) -> None:
        if not torch.isfinite(self._together).all():
            if self._together.dtype == torch.float64:
                raise RuntimeError("the model's own constants are too large for float64, or its outputs not finite")
            raise CurvatureError("the model's outputs are not finite; its weights or inputs are out of range")
        if self._together.shape[1:] != self._alone.shape[1:] or not self._same(self._together[:1], self._alone):
            raise _mixing(f"the model ({type(self._model).__name__})")

    def _same(self, outputs: Tensor, others: Tensor) -> bool:
        tolerance = max(self._tolerance, TOLERANCE)
        return torch.allclose(outputs, others, rtol=tolerance, atol=tolerance * float(others.abs().max()))

    def _add_by_hooks(self, units: list[Unit]) -> set[str]:
        """Add the squares of s, 2 s and nothing; returns the parameters whose gradients could not be had.

        Raises:
            RuntimeError: the model does not put up with hooks.
        """
        names = {name for unit in units for name in unit.names.values()}
        sums = Sums({name: self._zeros[name] for name in names}, [])
        with Capture(units, sums, 3, expand=self._expand) as capture:
            with by_onednn(self._alone.device):
                outputs = model_outputs(self._model, _with_a_graph(self._three))
            if outputs.shape != self._together.shape:
                raise RuntimeError("observing the model changes its outputs")
            vector = self._vector
            capture.backward(outputs, torch.cat([vector, 2 * vector, torch.zeros_like(vector)]), last=True)
        self._picked |= capture.picked
        return capture.not_by_example | capture.failed

    def _clear(self) -> None:
        for value in self._zeros.values():
            value.zero_()

    def _differing(self, names: Collection[str]) -> tuple[set[str], set[str]]:
        """The names that have no gradient, and those for which the sums, which are zeroed, are not 5 G²."""
        differing = set[str]()
        without = set(names)
        self._zero = set[str]()

        def compare(name: str, gradient: Tensor) -> None:
            wanted = gradient.double().square_().mul_(5)
            size = float(wanted.norm())
            if size == 0:
                self._zero.add(name)
                return
            without.discard(name)
            self._sizes[name] = size
            self._left[name] = float((self._zeros[name] - wanted).norm())
            if not self._left[name] <= self._tolerance * size:
                differing.add(name)

        self._left: dict[str, float] = {}
        with differentiable(self._model, names) as parameters, torch.enable_grad():
            outputs = model_outputs(self._model, self._one)
            receive_gradients(outputs, parameters, self._vector, compare, last=True)
        for name in without:
            if size := float(self._zeros[name].norm()):
                self._left[name] = size
                differing.add(name)
        self._clear()
        return without - differing, differing

    def _cancels(self, name: str) -> bool:
        """Whether hooks and autograd both find next to nothing of what the same module's other parameters have."""
        beside = max((self._sizes.get(other, 0.0) for other in self._homes.beside(name)), default=0.0)
        return max(self._left[name], self._sizes.get(name, 0.0)) <= CANCELLED * beside

    def _rounding(self, names: Collection[str]) -> set[str]:
        """Those of the names whose difference is rounding: adding up in another order makes one as large.

        A gradient that is zero but for rounding (of BERT's key biases) is never the same twice, and far smaller than
        that of the weights beside it, which is made of the same terms.
        """
        cancelled = {name for name in names if self._together.dtype == torch.float64 and self._cancels(name)}
        return cancelled | self._noisy(set(names) - cancelled)

    def _noisy(self, names: Collection[str]) -> set[str]:
        """Those of the names whose difference is no larger than what adding up in another order makes."""
        if not names:
            return set()
        squares: dict[str, Tensor] = {}
        noise = dict.fromkeys(names, 0.0)

        def remember(name: str, gradient: Tensor) -> None:
            squares[name] = gradient.double().square_().mul_(5)

        def compare(name: str, gradient: Tensor) -> None:
            other = squares.pop(name, torch.zeros(())).to(gradient.device)
            noise[name] = float((other - gradient.double().square_().mul_(5)).norm())

        with differentiable(self._model, names) as parameters, torch.enable_grad():
            receive_gradients(model_outputs(self._model, self._one), parameters, self._vector, remember, last=True)
            outputs = model_outputs(self._model, self._three)
            vector = torch.cat([self._vector, *[torch.zeros_like(self._vector)] * 2])
            receive_gradients(outputs, parameters, vector, compare, last=True)
        # Beyond that it is no rounding, but another gradient: torch gives some models one in a batch and one alone.
        most = self._rounding_share * max(self._sizes.values(), default=0.0)
        return {name for name in names if self._left[name] <= min(ROUNDING * noise[name], most)}


def _three(batch: Batch, b: int = 0) -> dict[str, object]:
    """One of its examples twice, and another one."""
    return chosen_rows(batch, [b, b, (b + 1) % batch_size(batch)])


def _with_a_graph(batch: Batch) -> dict[str, object]:
    """The batch with inputs that a graph begins at, so that it can be seen where rows of them are picked."""
    return {
        name: value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }


def _singles(batch: Batch) -> range:
    return range(min(SINGLES, batch_size(batch)))


def _random_vector(outputs: Tensor) -> Tensor:
    """Always the same, of the shape of one example's outputs."""
    return torch.randn(outputs[:1].shape, generator=torch.Generator().manual_seed(0)).to(outputs)


def _refuse_what_cannot_be(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise _mixing(f"module {name} ({type(module).__name__} without running statistics)")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UnsupportedModelError(
                f"parameter {name} is not in memory (on the device `meta`, as with offloading); load the model whole"
            )


def _mixing(culprit: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{culprit} mixes the examples of a batch: an example's outputs depend on the others', so it has no gradient "
        "of its own"
    )
